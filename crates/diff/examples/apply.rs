//! Applies a layer to a folder and tells how long it took: `apply LAYER FOLDER [overlay]`.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use corten_diff::{ApplyOptions, apply};
use corten_types::{Error, Mount, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layer, folder, rest @ ..] = arguments.as_slice() else {
        return Err(Error::invalid_argument("apply LAYER FOLDER [overlay]"));
    };
    std::fs::create_dir_all(Path::new(folder))?;
    let mount = match rest.first() {
        Some(_) => {
            Mount { kind: "overlay".into(), options: vec![format!("upperdir={folder}")], ..Mount::default() }
        }
        None => Mount { kind: "bind".into(), source: folder.clone(), ..Mount::default() },
    };
    let start = Instant::now();
    let applied = apply(&mut File::open(layer)?, &[mount], &ApplyOptions::default())?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{} {} bytes in {:.3?}, {peak}", applied.digest, applied.size, start.elapsed());
    Ok(())
}
