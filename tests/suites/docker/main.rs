//! Docker Engine stands on the daemon: Debian's `dockerd` of two versions, driven by its own command line. Each test is
//! an engine with checks of some subjects; `DOCKER_ONLY=text` plays some checks, `DOCKER_REFERENCE=1` plays them on
//! Debian's containerd.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod checks;
mod left;
mod table;

use checks::{build, compose, exec, images, life, limits, networks, run, survival, swarm};
use corten_tests::engine::{Engine, Kind};
use serde_json::json;
use table::Area;

/// What containers are given, do and suffer.
const CONTAINERS: &[Area] =
    &[("run", run::CHECKS), ("limits", limits::CHECKS), ("exec", exec::CHECKS), ("life", life::CHECKS)];

/// How images come, are made and go.
const IMAGES: &[Area] = &[("images", images::CHECKS), ("build", build::CHECKS)];

/// What containers reach, together with others too.
const NETWORKS: &[Area] = &[("networks", networks::CHECKS), ("compose and plugins", compose::CHECKS)];

/// What goes on while engine or daemon do not.
const SURVIVAL: &[Area] = &[("survival", survival::CHECKS)];
const SWARM: &[Area] = &[("swarm", swarm::CHECKS)];

fn containers(kind: Kind) {
    let engine = Engine::start(kind, &json!({}));
    table::play(&engine, 4, CONTAINERS);
}

fn images(kind: Kind) {
    let engine = Engine::start(kind, &json!({}));
    table::play(&engine, 4, IMAGES);
}

fn networks(kind: Kind) {
    let engine = Engine::start(kind, &json!({}));
    table::play(&engine, 4, NETWORKS);
}

fn survives(kind: Kind) {
    let engine = Engine::start(kind, &json!({"live-restore": true}));
    table::play(&engine, 1, SURVIVAL);
}

fn swarm(kind: Kind) {
    let engine = Engine::start(kind, &json!({}));
    table::play(&engine, 1, SWARM);
}

#[test]
fn containers_of_docker_20() {
    containers(Kind::Docker20);
}

#[test]
fn containers_of_docker_26() {
    containers(Kind::Docker26);
}

#[test]
fn containers_of_docker_26_with_the_image_store() {
    containers(Kind::Docker26Store);
}

#[test]
fn images_of_docker_20() {
    images(Kind::Docker20);
}

#[test]
fn images_of_docker_26() {
    images(Kind::Docker26);
}

#[test]
fn images_of_docker_26_with_the_image_store() {
    images(Kind::Docker26Store);
}

#[test]
fn networks_of_docker_20() {
    networks(Kind::Docker20);
}

#[test]
fn networks_of_docker_26() {
    networks(Kind::Docker26);
}

#[test]
fn networks_of_docker_26_with_the_image_store() {
    networks(Kind::Docker26Store);
}

#[test]
fn containers_of_docker_20_survive() {
    survives(Kind::Docker20);
}

#[test]
fn swarm_of_docker_20() {
    swarm(Kind::Docker20);
}

#[test]
fn containers_of_docker_26_survive() {
    survives(Kind::Docker26);
}

#[test]
fn swarm_of_docker_26() {
    swarm(Kind::Docker26);
}

#[test]
fn containers_of_docker_26_with_the_image_store_survive() {
    survives(Kind::Docker26Store);
}

#[test]
fn swarm_of_docker_26_with_the_image_store() {
    swarm(Kind::Docker26Store);
}
