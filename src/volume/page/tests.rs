use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Edit {
    Insert(prop::sample::Index, Vec<u8>, Vec<u8>),
    Replace(prop::sample::Index, Vec<u8>, Vec<u8>),
    ReplaceValue(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
    Truncate(prop::sample::Index),
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    (0..=longest, any::<u8>()).prop_map(|(len, byte)| (0..len).map(|i| byte.wrapping_add(i as u8)).collect())
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (index(), bytes(300), bytes(1500)).prop_map(|(at, key, value)| Edit::Insert(at, key, value)),
        3 => (index(), bytes(300), bytes(1500)).prop_map(|(at, key, value)| Edit::Replace(at, key, value)),
        3 => (index(), bytes(1500)).prop_map(|(at, value)| Edit::ReplaceValue(at, value)),
        3 => index().prop_map(Edit::Remove),
        1 => index().prop_map(Edit::Truncate),
    ]
}

fn cells(page: Page) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..page.count()).map(|slot| (page.key(slot).to_vec(), page.value(slot).to_vec())).collect()
}

proptest! {
    /// The page is a list of cells, whatever is done to it, and takes a cell exactly when it says that it fits.
    #[test]
    fn a_page_is_a_list_of_cells(user_len in 0usize..200, edits in prop::collection::vec(edit(), 1..120)) {
        let mut block = vec![0xEEu8; BLOCK_SIZE];
        let mut page = PageMut::format(&mut block, user_len, &[]).unwrap();
        let mut model: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for edit in edits {
            match edit {
                Edit::Insert(at, key, value) => {
                    let at = at.index(model.len() + 1);
                    let fits = page.view().fits(key.len(), value.len());
                    prop_assert_eq!(page.insert(at as u16, &key, &value).is_ok(), fits);
                    if fits {
                        model.insert(at, (key, value));
                    }
                }
                Edit::Replace(at, key, value) if !model.is_empty() => {
                    let at = at.index(model.len());
                    let fits = page.view().fits_instead(at as u16, key.len(), value.len());
                    prop_assert_eq!(page.replace(at as u16, &key, &value).is_ok(), fits);
                    if fits {
                        model[at] = (key, value);
                    }
                }
                Edit::ReplaceValue(at, value) if !model.is_empty() => {
                    let at = at.index(model.len());
                    let fits = page.view().fits_instead(at as u16, model[at].0.len(), value.len());
                    prop_assert_eq!(page.replace_value(at as u16, &value).is_ok(), fits);
                    if fits {
                        model[at].1 = value;
                    }
                }
                Edit::Remove(at) if !model.is_empty() => {
                    let at = at.index(model.len());
                    page.remove(at as u16).unwrap();
                    model.remove(at);
                }
                Edit::Truncate(at) => {
                    let at = at.index(model.len() + 1);
                    page.truncate(at as u16).unwrap();
                    model.truncate(at);
                }
                Edit::Replace(..) | Edit::ReplaceValue(..) | Edit::Remove(_) => {}
            }
            prop_assert_eq!(page.view().check(), Ok(()));
            prop_assert_eq!(cells(page.view()), model.clone());
            let used: usize = model.iter().map(|(key, value)| cell_bytes(key.len(), value.len())).sum();
            prop_assert_eq!(page.view().free_bytes(), page_capacity(user_len) - used);
        }
    }

    #[test]
    fn finding_agrees_with_a_sorted_list(keys in prop::collection::btree_set(prop::collection::vec(0u8..3, 0..12), 1..60), absent in prop::collection::vec(0u8..3, 0..12)) {
        let mut block = vec![0u8; BLOCK_SIZE];
        let mut page = PageMut::format(&mut block, 16, &[]).unwrap();
        page.insert(0, b"a cell in front that the search leaves out", b"").unwrap();
        for (at, key) in keys.iter().enumerate() {
            page.insert(at as u16 + 1, key, b"v").unwrap();
        }
        for (at, key) in keys.iter().enumerate() {
            prop_assert_eq!(page.view().find(1, key), Ok(at as u16 + 1));
            for guess in 1..=keys.len() as u16 {
                prop_assert_eq!(page.view().find_near(1, guess, key), Ok(at as u16 + 1));
            }
        }
        if !keys.contains(&absent) {
            let at = keys.range(..absent.clone()).count() as u16 + 1;
            prop_assert_eq!(page.view().find(1, &absent), Err(at));
            for guess in 1..=keys.len() as u16 {
                prop_assert_eq!(page.view().find_near(1, guess, &absent), Err(at));
            }
        }
    }

    /// What a checksum did not catch must still not make an edit go astray: check() finds it or the edits stay in bounds.
    #[test]
    fn a_page_that_passes_its_check_takes_edits(at in BLOCK_HEADER..BLOCK_SIZE, byte: u8, low in any::<[u8; 8]>()) {
        let mut block = vec![0u8; BLOCK_SIZE];
        let mut page = PageMut::format(&mut block, 4, &[1, 2, 3, 4]).unwrap();
        for slot in 0..20u16 {
            page.insert(slot, &slot.to_be_bytes(), &[slot as u8; 70]).unwrap();
        }
        block[at] = byte;
        if at % 3 == 0 {
            block[BLOCK_HEADER..BLOCK_HEADER + 8].copy_from_slice(&low);
        }
        if Page::new(&block).check().is_ok() {
            let mut page = PageMut::new(&mut block);
            let _ = page.insert(0, &[9; 500], &[9; 500]);
            let _ = page.replace_value(0, &[9; 900]);
            let _ = page.truncate(1);
            prop_assert_eq!(page.view().check(), Ok(()));
        }
    }
}

proptest! {
    #[test]
    fn keys_are_in_the_order_of_their_bytes(a in prop::collection::vec(0u8..3, 0..12), b in prop::collection::vec(0u8..3, 0..12), common in 0usize..12) {
        let with_prefix = |tail: &[u8]| [&[1; 12][..common], tail].concat();
        for (a, b) in [(a.clone(), b.clone()), (with_prefix(&a), with_prefix(&b)), (a.clone(), with_prefix(&a))] {
            prop_assert_eq!(compare_keys(&a, &b), a.cmp(&b));
        }
    }
}

#[test]
fn a_patch_changes_user_bytes_and_nothing_else() {
    let mut block = vec![0u8; BLOCK_SIZE];
    let mut page = PageMut::format(&mut block, 16, b"header").unwrap();
    page.insert(0, b"key", b"value").unwrap();
    page.patch(USER_HEADER + 6, b"!").unwrap();
    let value = page.view().value_range(0);
    page.patch(value.start, b"V").unwrap();
    assert_eq!(
        (page.view().user_header(), page.view().cell(0)),
        (&b"header!\0\0\0\0\0\0\0\0\0"[..], (&b"key"[..], &b"Value"[..]))
    );
    for (offset, len) in
        [(0, 1), (BLOCK_HEADER, 2), (USER_HEADER + 15, 2), (value.end - 1, 2), (value.start - 4, 4), (BLOCK_SIZE - 1, 9)]
    {
        let refused = page.patch(offset, &vec![7; len]);
        assert!(
            matches!(refused, Err(PageFault::OutOfRange { .. })) || offset == value.start - 4,
            "offset {offset}, {len} bytes"
        );
    }
    assert_eq!(page.view().check(), Ok(()));
}
