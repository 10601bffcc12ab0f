//! Formatting a shared volume.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rustydb::config::{ByteSize, VOLUME_FILE_NAME};
use rustydb::ids::BLOCK_SIZE;
use rustydb::reactor::{DriverChoice, ReactorOptions, thread::run_local};
use rustydb::volume::{FormatOptions, Volume, VolumeError};

use super::Failure;
use super::args::{Arguments, InitZero};

/// `--init-rac`
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.shared_storage.as_deref().expect("clap requires it");
    let path: PathBuf = if path.is_dir() { path.join(VOLUME_FILE_NAME) } else { path.to_owned() };
    let is_device = path.metadata().is_ok_and(|metadata| !metadata.is_file());
    // A device has no map of extents that a first write would change.
    let init_zero = arguments.init_zero.unwrap_or(if is_device { InitZero::Redo } else { InitZero::All });
    let options = FormatOptions {
        nodes_max: arguments.max_nodes,
        shards: arguments.shards,
        volume_bytes: if is_device { 0 } else { arguments.volume_size.0 },
        force: arguments.force,
        init_zero: init_zero.into(),
        ..FormatOptions::new(&arguments.cluster_name)
    };
    format(&path, &options)?;
    println!(
        "Next: start each node with `rusty-db-server --config FILE`; cluster_name = {:?}, shards = {}",
        arguments.cluster_name, arguments.shards
    );
    Ok(())
}

/// Formats `path` and shows how far it is.
pub(super) fn format(path: &Path, options: &FormatOptions) -> Result<(), Failure> {
    let bar = ProgressBar::new(options.volume_bytes).with_style(
        ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .expect("a valid template")
            .progress_chars("=> "),
    );
    bar.set_message(format!("Formatting {}", path.display()));
    let (target, options, shown) = (path.to_owned(), options.clone(), bar.clone());
    let cluster = options.cluster_name.clone();
    let driver = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };
    let done = run_local(driver, move |reactor| async move {
        let mut written = 0;
        let volume = Volume::format(&reactor, &target, &options, &mut |progress| {
            forget_cached(&target, progress.done);
            shown.set_length(progress.total);
            shown.set_position(progress.done);
            written = progress.total;
        })
        .await?;
        Ok::<_, VolumeError>((*volume.geometry(), written))
    });
    bar.finish_and_clear();
    let (geometry, written) = done.map_err(Failure::new)?.map_err(Failure::input)?;
    println!(
        "Formatted {} for cluster {cluster:?}: {} for up to {} nodes of {} shard{}, {} of redo for each shard; {}",
        path.display(),
        ByteSize(geometry.volume_bytes()),
        geometry.nodes_max,
        geometry.shards,
        if geometry.shards == 1 { "" } else { "s" },
        ByteSize(geometry.redo_area_blocks * BLOCK_SIZE as u64),
        if written == geometry.volume_bytes() {
            "written with zeros: all of it"
        } else {
            "written with zeros: what stands before the data"
        },
    );
    Ok(())
}

/// The zeros up to here are on the disk. Where the file system refuses O_DIRECT they lie in the page cache too, where something of
/// use would lie otherwise.
fn forget_cached(path: &Path, bytes: u64) {
    let Ok(file) = File::open(path) else { return };
    // SAFETY: no pointers; the descriptor is open. An advice: what it says does not matter.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, bytes as libc::off_t, libc::POSIX_FADV_DONTNEED) };
}
