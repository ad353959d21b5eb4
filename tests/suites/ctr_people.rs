//! What `ctr` does for people, and what it does when things go wrong.

use corten_tests::Node;

#[test]
fn placeholder() {
    drop(Node::start);
}
