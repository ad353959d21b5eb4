//! The supervisor of containers: see the crate `corten-shim`. Called by the name `runc` it is the embedded
//! OCI runtime with runc's command line, for people and programs that expect one.

mod runc;

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    if std::path::Path::new(&name).file_name().is_some_and(|name| name == "runc") {
        std::process::exit(runc::main(std::env::args().skip(1).collect()));
    }
    match corten_shim::main(std::env::args()) {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("containerd-shim-runc-v2: {error}");
            std::process::exit(1);
        }
    }
}
