//! A client that makes a table, writes large rows, reads them on another node, and drops it. On a small volume it goes on
//! until there is no space left, and the others meet a full volume.

use super::{Clients, Trouble};
use crate::sim::dice::Dice;
use crate::store::{Placement, ScanLimit, ScanRange, StoreError, WriteOp};

/// Bytes of a row: some with overflow blocks.
const ROW_BYTES: [usize; 3] = [2_000, 30_000, 200_000];

/// Most rows of a table, and of one that is to fill the volume.
const ROWS_MAX: u64 = 40;
const FILLING_ROWS_MAX: u64 = 600;

/// A client's next transactions.
pub(super) async fn turn(clients: &Clients, dice: &Dice) {
    if !dice.chance(clients.plan.tables_per_cent) {
        return;
    }
    if let Err(trouble) = fill(clients, dice).await {
        clients.count(trouble.word());
    }
    if let Some((_, store)) = clients.any_store(dice)
        && let Err(trouble) = clients.answer(dice, clients.drop_scratch(&store)).await
    {
        clients.count(trouble.word());
    }
}

async fn fill(clients: &Clients, dice: &Dice) -> Result<(), Trouble> {
    let Some((_, store)) = clients.any_store(dice) else { return Ok(()) };
    let partition = clients.answer(dice, store.create_partition(Placement::Any)).await?;
    clients.scratch.borrow_mut().push(partition);
    let bytes = dice.pick(&ROW_BYTES);
    let row = |number: u64| vec![number as u8; bytes];
    let rows_max = if clients.plan.fills_volume { FILLING_ROWS_MAX } else { dice.between(1, ROWS_MAX) };
    let mut written = 0;
    let full = loop {
        if written == rows_max {
            break false;
        }
        let write = WriteOp::Put { partition, key: written.to_be_bytes().to_vec(), value: row(written) };
        match clients.answer(dice, store.session().write(vec![write])).await {
            Ok(_) => written += 1,
            Err(Trouble::Store(StoreError::VolumeFull)) => break true,
            Err(trouble) => return Err(trouble),
        }
    };
    clients.events.note(format_args!(
        "a table: {written} rows of {bytes} bytes in {partition}{}",
        if full { ", the volume is full" } else { "" }
    ));
    let Some((node, other)) = clients.any_store(dice) else { return Ok(()) };
    let mut session = other.session();
    let (mut range, mut seen) = (Some(ScanRange::all()), 0u64);
    while let Some(next) = range {
        let chunk = clients.answer(dice, session.scan(partition, next, ScanLimit::default())).await?;
        for (key, value) in &chunk.rows {
            if key[..] != seen.to_be_bytes() || *value != row(seen) {
                let found = value.iter().position(|byte| *byte != seen as u8);
                let message = format!(
                    "row {seen} of {partition} on node{node} is another: key {key:?}, {} bytes, differs at {found:?}",
                    value.len()
                );
                clients.broken.borrow_mut().push(message);
                return Ok(());
            }
            seen += 1;
        }
        range = chunk.more;
    }
    // A row that was written without an answer may be there too.
    if seen < written {
        clients.broken.borrow_mut().push(format!("node{node} sees {seen} of {written} rows of {partition}"));
    }
    Ok(())
}
