//! The supervisor of containers: see the crate `corten-shim`.

fn main() {
    match corten_shim::main(std::env::args()) {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("containerd-shim-runc-v2: {error}");
            std::process::exit(1);
        }
    }
}
