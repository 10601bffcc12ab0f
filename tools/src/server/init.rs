//! Formatting a shared volume.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rustydb::config::{ByteSize, VOLUME_FILE_NAME};
use rustydb::reactor::{DriverChoice, ReactorOptions, thread::run_local};
use rustydb::volume::{FormatOptions, Volume};

use super::Failure;
use super::args::Arguments;

/// `--init-rac`
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.shared_storage.as_deref().expect("clap requires it");
    let path: PathBuf = if path.is_dir() { path.join(VOLUME_FILE_NAME) } else { path.to_owned() };
    let is_device = path.metadata().is_ok_and(|metadata| !metadata.is_file());
    let size = if is_device { ByteSize(0) } else { arguments.volume_size };
    format(&path, &arguments.cluster_name, arguments.max_nodes, arguments.shards, size, arguments.force)?;
    println!(
        "Next: start each node with `rusty-db-server --config FILE`; cluster_name = {:?}, shards = {}",
        arguments.cluster_name, arguments.shards
    );
    Ok(())
}

/// Formats `path` and shows how far it is. A size of 0 takes what the device has.
pub(super) fn format(path: &Path, cluster: &str, nodes_max: u8, shards: u8, size: ByteSize, force: bool) -> Result<(), Failure> {
    let options =
        FormatOptions { cluster_name: cluster.to_owned(), nodes_max, shards, volume_bytes: size.0, redo_area_bytes: None, force };
    let bar = ProgressBar::new(size.0).with_style(
        ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {eta}")
            .expect("a valid template")
            .progress_chars("=> "),
    );
    bar.set_message(format!("Formatting {}", path.display()));
    let target = path.to_owned();
    let shown = bar.clone();
    let driver = ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true };
    let done = run_local(driver, move |reactor| async move {
        let volume = Volume::format(&reactor, &target, &options, &mut |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        })
        .await?;
        let geometry = *volume.geometry();
        Ok::<_, rustydb::volume::VolumeError>(geometry)
    });
    bar.finish_and_clear();
    let geometry = done.map_err(Failure::new)?.map_err(Failure::input)?;
    println!(
        "Formatted {} for cluster {cluster:?}: {} for up to {} nodes of {} shard{}, {} of redo for each shard",
        path.display(),
        ByteSize(geometry.blocks_total * rustydb::ids::BLOCK_SIZE as u64),
        geometry.nodes_max,
        geometry.shards,
        if geometry.shards == 1 { "" } else { "s" },
        ByteSize(geometry.redo_area_blocks * rustydb::ids::BLOCK_SIZE as u64),
    );
    Ok(())
}
