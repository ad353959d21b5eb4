//! `docker compose`, by Debian's plugin, and managed plugins.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use corten_tests::{ImageBuilder, eventually};
use serde_json::json;

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("compose: up, names, volumes, ps, logs, exec, down", compose),
    ("compose: build, scale, depends_on with health", compose_more),
    ("a managed plugin: create, enable, use, disable, remove", plugin),
];

fn compose(e: &Engine) {
    let folder = e.folder("compose");
    let text = format!(
        "services:\n  web:\n    image: {BOX}\n    command: sh -c 'mkdir -p /www && echo word > /www/index.html && exec httpd -f -p 80 -h /www'\n    \
         volumes: [\"kept:/kept\"]\n    environment: {{A: b}}\n  client:\n    image: {BOX}\n    depends_on: [web]\n    \
         command: sh -c 'until wget -q -O - http://web/; do sleep 0.1; done; echo got; sleep 1000'\nvolumes:\n  kept: {{}}\n"
    );
    std::fs::write(format!("{folder}/compose.yaml"), text).unwrap();
    let compose = format!("compose -p lab -f {folder}/compose.yaml");
    e.docker(&format!("{compose} up -d")).ok();
    eventually("the client has its word", PATIENCE, || {
        e.out(&format!("{compose} logs client")).contains("got").then_some(())
    });
    assert_eq!(e.out(&format!("{compose} ps -q")).lines().count(), 2);
    assert_eq!(e.out(&format!("{compose} exec -T web sh -c 'echo $A'")), "b");
    assert_eq!(e.out("volume ls -q --filter name=lab_kept"), "lab_kept");
    e.docker(&format!("{compose} stop -t 0 web")).ok();
    e.docker(&format!("{compose} down -v -t 0")).ok();
    assert_eq!(e.out("ps -aq --filter label=com.docker.compose.project=lab"), "");
    assert_eq!(e.out("network ls -q --filter name=lab_default"), "");
    assert_eq!(e.out("volume ls -q --filter name=lab_kept"), "");
}

fn compose_more(e: &Engine) {
    let folder = e.folder("compose-more");
    std::fs::write(format!("{folder}/Dockerfile"), format!("FROM {BOX}\nRUN echo built > /built\n")).unwrap();
    let text = "services:\n  base:\n    build: .\n    command: sh -c 'sleep 0.3; touch /tmp/well; sleep 1000'\n    \
         healthcheck: {test: [CMD, test, -e, /tmp/well], interval: 200ms, timeout: 30s, retries: 100}\n  \
         next:\n    build: .\n    command: sleep 1000\n    depends_on: {base: {condition: service_healthy}}\n";
    std::fs::write(format!("{folder}/compose.yaml"), text).unwrap();
    let compose = format!("compose -p more -f {folder}/compose.yaml");
    e.docker(&format!("{compose} up -d --scale next=2")).ok();
    assert_eq!(e.out(&format!("{compose} ps -q next")).lines().count(), 2);
    assert_eq!(e.out(&format!("{compose} exec -T next cat /built")), "built");
    e.docker(&format!("{compose} down -t 0 --rmi all")).ok();
    assert_eq!(e.out("ps -aq --filter label=com.docker.compose.project=more"), "");
}

/// A volume plugin: its container shows that its folders are there, this process answers for it on the same socket.
fn plugin(e: &Engine) {
    let folder = e.folder("plugin");
    let place = format!("{folder}/rootfs");
    std::fs::create_dir_all(&place).unwrap();
    let image = ImageBuilder::busybox().build();
    let archive = format!("{folder}/layer.tar.gz");
    std::fs::write(&archive, &image.blobs[1].data).unwrap();
    let status = std::process::Command::new("tar").args(["-xzf", &archive, "-C", &place]).status().unwrap();
    assert!(status.success());
    let config = json!({
        "description": "volumes of a test", "documentation": "", "workdir": "/",
        "entrypoint": ["/bin/sh", "-c", "cd /run/docker/plugins; echo $SETTING > inside; until cat /data/f > seen; do sleep 0.1; done; exec sleep 1000"],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "v.sock"},
        "env": [{"name": "SETTING", "value": "one", "settable": ["value"]}],
        "network": {"type": "none"}, "linux": {"capabilities": []}, "propagatedMount": "/data",
    });
    std::fs::write(format!("{folder}/config.json"), config.to_string()).unwrap();
    e.docker(&format!("plugin create lab/volumes:1 {folder}")).ok();
    e.docker("plugin set lab/volumes:1 SETTING=two").ok();
    let id = e.out("plugin inspect -f '{{.Id}}' lab/volumes:1");
    // The engine keeps these outside of its own folders.
    let sockets = std::path::Path::new("/run/docker/plugins").join(&id);
    let enabling = e.docker_running("plugin enable --timeout 30 lab/volumes:1");
    let inside = eventually("the plugin's container runs", PATIENCE, || {
        std::fs::read_to_string(sockets.join("inside")).ok().filter(|text| !text.is_empty())
    });
    assert_eq!(inside, "two\n");
    let listener = UnixListener::bind(sockets.join("v.sock")).unwrap();
    std::thread::spawn(move || answer(&listener, "/data"));
    enabling.finish().ok();
    assert_eq!(e.out("plugin inspect -f '{{.Enabled}}' lab/volumes:1"), "true");
    e.docker("volume create -d lab/volumes:1 plugged").ok();
    e.docker(&format!("run --rm -v plugged:/v {BOX} sh -c 'echo by plugin > /v/f'")).ok();
    eventually("the plugin sees what was written to its volume", PATIENCE, || {
        let seen = std::fs::read_to_string(sockets.join("seen")).unwrap_or_default();
        (seen == "by plugin\n").then_some(())
    });
    e.docker("volume rm plugged").ok();
    e.docker("plugin disable lab/volumes:1").ok();
    e.docker("plugin rm lab/volumes:1").ok();
    assert_eq!(e.out("plugin ls -q"), "");
    std::fs::remove_dir_all(&sockets).ok();
}

/// Speaks the protocol of volume plugins for one folder.
fn answer(listener: &UnixListener, folder: &'static str) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || -> Option<()> {
            let mut reader = BufReader::new(stream.try_clone().ok()?);
            loop {
                let (mut line, mut length) = (String::new(), 0);
                reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
                let path = line.split(' ').nth(1)?.to_owned();
                loop {
                    line.clear();
                    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
                    let lower = line.to_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length:") {
                        length = value.trim().parse().ok()?;
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                std::io::copy(&mut std::io::Read::take(&mut reader, length), &mut std::io::sink()).ok()?;
                let volume = json!({"Name": "plugged", "Mountpoint": folder});
                let body = match path.as_str() {
                    "/Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
                    "/VolumeDriver.Get" => json!({"Volume": volume, "Err": ""}),
                    "/VolumeDriver.List" => json!({"Volumes": [volume], "Err": ""}),
                    "/VolumeDriver.Capabilities" => json!({"Capabilities": {"Scope": "local"}}),
                    _ => json!({"Mountpoint": folder, "Err": ""}),
                }
                .to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).ok()?;
            }
        });
    }
}
