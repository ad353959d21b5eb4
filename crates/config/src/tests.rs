use super::*;

fn read(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("test.toml"))
}

#[test]
fn files_of_all_versions_are_read() {
    let docker = read("disabled_plugins = [\"cri\"]\n").unwrap();
    assert_eq!(docker.disabled_plugins, ["io.containerd.grpc.v1.cri"]);
    let two = read("version = 2\n[grpc]\naddress = \"/x/y\"\ngid = 7\n[odd]\n").unwrap();
    assert_eq!(two.ttrpc_address(), Path::new("/x/y.ttrpc"));
    assert_eq!(two.number::<u32>(TTRPC, "gid"), 7);
    let four = read("version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/a'\n").unwrap();
    assert_eq!(four.grpc_address(), Path::new("/a"));
    assert_eq!(four.ttrpc_address(), Config::default().ttrpc_address());
    assert!(read("version = 5").unwrap_err().to_string().contains("got `5`"));
    assert!(read(&Config::default().to_toml()).unwrap().warnings.is_empty());
}
