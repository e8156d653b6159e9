//! The sessions of a run, in environment.json: device, build, command and images of each.

use serde_json::json;

use super::Result;
use super::run::TrainingSetup;
use super::run_folder::{RunFolder, RunFolderError};
use crate::clock;
use crate::data::extra::ExtraImages;
use crate::data::{DataSet, Images};
use crate::digest::sha256;
use crate::engine::Engine;
use crate::text::command_line;

/// Adds this session of a run; returns whether the first one had another device or build.
///
/// # Errors
/// [`RunFolderError::OtherImages`] where the run was started on other ones.
pub(super) fn add_session(folder: &RunFolder, setup: &TrainingSetup, engine: &Engine) -> Result<bool> {
    let (data, device) = (setup.data, engine.device());
    let data_sha256 = digest(data);
    let mut moved = false;
    if let Some(first) = folder.sessions()?.first() {
        if first["data_sha256"] != json!(data_sha256) {
            let path = folder.path().into();
            let started_on = first["data_sha256"].as_str().unwrap_or("unknown").into();
            return Err(RunFolderError::OtherImages { path, started_on, now: data_sha256 }.into());
        }
        moved = first["device"] != json!(device);
    }
    folder.add_session(json!({
        "secateur": env!("CARGO_PKG_VERSION"),
        "started_unix_seconds": clock::now().as_secs(),
        "command": command_line(),
        "device": device,
        "ranks": engine.ranks(),
        "threads": rayon::current_num_threads(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "data": setup.data_path.map(|path| path.to_string_lossy()),
        "data_sha256": data_sha256,
        "training_images": data.train.len(),
        "extra_images": data.extra_count(),
        "test_images": data.test.len(),
    }))?;
    Ok(moved)
}

/// SHA-256 of the pixels and labels of both parts, and of the digests of the extra images.
fn digest(data: &DataSet) -> String {
    let of_part =
        |images: &Images| [sha256(&images.pixels), sha256(bytemuck::cast_slice::<u32, u8>(&images.labels))];
    let parts = [of_part(&data.train), of_part(&data.test)].concat();
    let extra = data.extra.iter().map(ExtraImages::sha256);
    sha256(parts.into_iter().chain(extra).collect::<String>().as_bytes())
}
