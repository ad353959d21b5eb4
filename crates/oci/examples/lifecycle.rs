//! Times create, start and delete of a bundle.
use corten_oci::runtime::{Streams, Target, embedded};
use std::time::Instant;
fn child(work: impl FnOnce() -> Result<String, String>) -> Result<i32, String> {
    let (r, w) = rustix::pipe::pipe().unwrap();
    let pid = corten_sys::fork(|| {
        let said = match work() {
            Ok(t) => format!("+{t}\0"),
            Err(t) => format!("-{t}\0"),
        };
        rustix::io::write(&w, said.as_bytes()).unwrap();
        0
    })
    .unwrap();
    drop(w);
    let mut b = [0u8; 4096];
    let n = rustix::io::read(&r, &mut b).unwrap();
    let t = String::from_utf8_lossy(&b[..n]).trim_end_matches('\0').to_owned();
    rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty()).ok();
    if let Some(t) = t.strip_prefix('+') { Ok(t.parse().unwrap_or(0)) } else { Err(t) }
}
fn main() {
    let mut a = std::env::args().skip(1);
    let bundle = a.next().unwrap();
    let n: usize = a.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    let target = Target {
        id: "x".into(),
        bundle: bundle.into(),
        root: "/run/cortest".into(),
        systemd: false,
        no_pivot: false,
        no_new_keyring: false,
    };
    let mut all = vec![];
    for _ in 0..n {
        let t0 = Instant::now();
        let pid = child(|| embedded::create(&target, Streams::default()).map(|p| p.to_string())).unwrap();
        let t1 = Instant::now();
        child(|| embedded::start(&target).map(|()| String::new())).unwrap();
        let t2 = Instant::now();
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty())
            .unwrap();
        let t3 = Instant::now();
        child(|| embedded::delete(&target, false).map(|()| String::new())).unwrap();
        let t4 = Instant::now();
        all.push([t1 - t0, t2 - t1, t3 - t2, t4 - t3, t4 - t0]);
    }
    for i in 0..5 {
        let mut c: Vec<_> = all.iter().map(|r| r[i]).collect();
        c.sort();
        println!("{} median {:?} min {:?}", ["create", "start", "wait", "delete", "all"][i], c[n / 2], c[0]);
    }
}
