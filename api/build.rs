//! Compiles the protocol descriptions without protoc: messages once, gRPC stubs into files of their
//! own, so that shims and domain crates need not build a gRPC stack.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(Path::new("proto"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut described = descriptors.clone();
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&described))?;

    prost_build::Config::new()
        .enable_type_names()
        // Blobs pass through without being copied.
        .bytes([
            ".containerd.services.content.v1.ReadContentResponse",
            ".containerd.services.content.v1.WriteContentRequest",
            ".containerd.types.transfer.Data",
        ])
        .btree_map(["."])
        .include_file("messages.rs")
        .compile_fds(descriptors.clone())?;

    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        let out = out.join("services");
        std::fs::create_dir_all(&out)?;
        let mut builder =
            tonic_prost_build::configure().build_transport(false).out_dir(&out).include_file("services.rs");
        // The messages exist already; only the stubs are wanted here.
        for file in &descriptors.file {
            if !file.package().starts_with("google.protobuf") {
                let path = format!("crate::messages::{}", file.package().replace('.', "::"));
                builder = builder.extern_path(format!(".{}", file.package()), path);
            }
        }
        builder.compile_fds(descriptors)?;
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
