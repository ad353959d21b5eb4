//! Debian's containerd 1.6 with the crun beside it in bookworm, which does not know the specifications of later ones.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use corten_tests::{Node, Peers};

use crate::IMAGE;

/// Where crun is.
pub fn program() -> PathBuf {
    Peers::find().crun()
}

/// A node that can run crun, and has the image.
pub fn start(folder: &Path) -> Node {
    let (peers, programs) = (Peers::find(), folder.join("crun"));
    std::fs::create_dir(&programs).unwrap();
    for program in ["ctr", "containerd-shim-runc-v2"] {
        symlink(peers.containerd_1_6().join(program), programs.join(program)).unwrap();
    }
    peers.beside_crun(&peers.containerd_1_6().join("containerd"), &programs.join("containerd"));
    let node = Node::peer(&programs).start();
    node.ctr(["images", "import", folder.join("image.tar").to_str().unwrap()]).ok();
    node.ctr(["run", "--rm", "--runc-binary", program().to_str().unwrap(), IMAGE, "first", "true"]).ok();
    node
}
