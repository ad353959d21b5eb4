//! `docker build`, by the classic builder and by BuildKit.

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, Kind, PATIENCE};
use corten_tests::eventually;

pub const CHECKS: &[Check] = &[
    ("classic: every instruction", classic),
    ("classic: several stages and targets", classic_stages),
    ("classic: cache", classic_cache),
    ("classic: what fails", classic_failure),
    ("BuildKit: every instruction", buildkit),
    ("BuildKit: several stages and targets", buildkit_stages),
    ("BuildKit: cache", buildkit_cache),
    ("BuildKit: mounts of caches, folders, secrets, tmpfs", buildkit_mounts),
    ("BuildKit: files as output", buildkit_output),
    ("BuildKit: what fails", buildkit_failure),
    ("BuildKit: build cache is shown and pruned", buildkit_prune),
];

const INSTRUCTIONS: &str = "
ARG VERSION=1
LABEL made=here
ENV GREETING=hello
WORKDIR /srv
COPY one two/ /srv/copied/
ADD archive.tar /added/
RUN echo $GREETING-$VERSION > said && mkdir -p data && echo d > data/d
RUN [\"/bin/sh\", \"-c\", \"id -u > /tmp/who\"]
USER nobody
VOLUME /srv/data
EXPOSE 80
HEALTHCHECK CMD true
STOPSIGNAL SIGUSR1
ENTRYPOINT [\"/bin/sh\", \"-c\"]
CMD [\"cat said copied/one copied/inner /added/packed /tmp/who data/d; id -u\"]
";

/// A folder with what the instructions copy.
fn context(e: &Engine, name: &str, file: &str) -> String {
    let folder = e.folder(name);
    std::fs::create_dir_all(format!("{folder}/two")).unwrap();
    std::fs::write(format!("{folder}/one"), "one\n").unwrap();
    std::fs::write(format!("{folder}/two/inner"), "inner\n").unwrap();
    let archive = corten_tests::Layer::new().file("packed", 0o644, b"packed\n").finish();
    std::fs::write(format!("{folder}/archive.tar"), archive).unwrap();
    std::fs::write(format!("{folder}/Dockerfile"), file).unwrap();
    folder
}

/// Builds; answers everything that was said.
#[track_caller]
fn build(e: &Engine, kit: bool, line: &str) -> String {
    let finished = e.docker_with(&[("DOCKER_BUILDKIT", if kit { "1" } else { "0" })], &command(e, kit, line));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout + &finished.stderr
}

fn command(e: &Engine, kit: bool, line: &str) -> String {
    // A newer client's plugin does not serve the old engine.
    let progress = if kit { "--progress plain" } else { "" };
    let _ = e;
    format!("build {progress} {line}")
}

fn every_instruction(e: &Engine, kit: bool, name: &str) {
    let folder = context(e, name, &format!("FROM {BOX}\n{INSTRUCTIONS}"));
    build(e, kit, &format!("-t {name}:1 --build-arg VERSION=2 {folder}"));
    assert_eq!(e.out(&format!("run --rm {name}:1")), "hello-2\none\ninner\npacked\n0\nd\n65534");
    assert_eq!(e.inspect(&format!("{name}:1"), ".Config.StopSignal"), "SIGUSR1");
    assert_eq!(e.inspect(&format!("{name}:1"), "index .Config.Labels \"made\""), "here");
    e.docker(&format!("rmi {name}:1")).ok();
}

fn stages(e: &Engine, kit: bool, name: &str) {
    let text = format!(
        "FROM {BOX} AS first\nRUN echo made > /made\nFROM {BOX} AS second\nRUN echo other > /other\n\
         FROM scratch AS last\nCOPY --from=first /bin /bin\nCOPY --from=first /made /\nCOPY --from={BOX} /etc/passwd /\n\
         CMD [\"/bin/cat\", \"/made\"]\n"
    );
    let folder = context(e, name, &text);
    build(e, kit, &format!("-t {name}:1 {folder}"));
    assert_eq!(e.out(&format!("run --rm {name}:1")), "made");
    assert_eq!(e.out(&format!("run --rm {name}:1 /bin/ls /")).matches("other").count(), 0);
    build(e, kit, &format!("-t {name}:2 --target second {folder}"));
    assert_eq!(e.out(&format!("run --rm {name}:2 cat /other")), "other");
    e.docker(&format!("rmi {name}:1 {name}:2")).ok();
}

fn cache(e: &Engine, kit: bool, name: &str, word: &str) {
    let folder = context(
        e,
        name,
        &format!("FROM {BOX}\nRUN echo {name} > /a\nCOPY one /one\nRUN od -An -tx8 -N8 /dev/urandom > /b\n"),
    );
    build(e, kit, &format!("-t {name}:1 {folder}"));
    let first = e.out(&format!("run --rm {name}:1 cat /b"));
    let told = build(e, kit, &format!("-t {name}:2 {folder}"));
    assert!(told.matches(word).count() >= 3, "{told}");
    assert_eq!(e.out(&format!("run --rm {name}:2 cat /b")), first);
    std::fs::write(format!("{folder}/one"), "changed\n").unwrap();
    build(e, kit, &format!("-t {name}:2 {folder}"));
    assert_ne!(e.out(&format!("run --rm {name}:2 cat /b")), first);
    build(e, kit, &format!("-t {name}:1 --no-cache {folder}"));
    assert_ne!(e.out(&format!("run --rm {name}:1 cat /b")), first);
    e.docker(&format!("rmi {name}:1 {name}:2")).ok();
}

fn failure(e: &Engine, kit: bool, name: &str) {
    let environment = [("DOCKER_BUILDKIT", if kit { "1" } else { "0" })];
    let folder = context(e, name, &format!("FROM {BOX}\nRUN echo before && exit 42\n"));
    let finished = e.docker_with(&environment, &command(e, kit, &folder));
    let told = finished.stdout.clone() + &finished.stderr;
    assert!(told.contains("before") && told.contains("42"), "{told}");
    assert_ne!(finished.code, Some(0));
    let folder = context(e, name, &format!("FROM {BOX}\nCOPY nosuch /\n"));
    let finished = e.docker_with(&environment, &command(e, kit, &folder));
    assert!(finished.stderr.contains("nosuch"), "{finished:?}");
    assert_ne!(finished.code, Some(0));
}

fn classic(e: &Engine) {
    every_instruction(e, false, "build-classic");
}

fn classic_stages(e: &Engine) {
    stages(e, false, "build-classic-stages");
}

fn classic_cache(e: &Engine) {
    cache(e, false, "build-classic-cache", "Using cache");
}

fn classic_failure(e: &Engine) {
    failure(e, false, "build-classic-failure");
}

fn buildkit(e: &Engine) {
    every_instruction(e, true, "build-kit");
}

fn buildkit_stages(e: &Engine) {
    stages(e, true, "build-kit-stages");
}

fn buildkit_cache(e: &Engine) {
    cache(e, true, "build-kit-cache", "CACHED");
}

fn buildkit_failure(e: &Engine) {
    failure(e, true, "build-kit-failure");
}

fn buildkit_mounts(e: &Engine) {
    let text = format!(
        "FROM {BOX} AS tools\nRUN echo tool > /tool\nFROM {BOX}\n\
         RUN --mount=type=cache,target=/cache echo line >> /cache/lines\n\
         RUN --mount=type=cache,target=/cache cat /cache/lines > /lines\n\
         RUN --mount=type=bind,from=tools,source=/tool,target=/mnt/tool cat /mnt/tool > /tool\n\
         RUN --mount=type=bind,target=/context cat /context/one > /one\n\
         RUN --mount=type=tmpfs,target=/t echo gone > /t/gone && grep ' /t ' /proc/mounts > /tmpfs\n\
         RUN --mount=type=secret,id=key cat /run/secrets/key | wc -c > /secret\n"
    );
    let folder = context(e, "build-kit-mounts", &text);
    std::fs::write(format!("{folder}/key"), "12345").unwrap();
    build(e, true, &format!("-t build-kit-mounts:1 --secret id=key,src={folder}/key {folder}"));
    let found = e.out(
        "run --rm build-kit-mounts:1 sh -c 'cat /lines /tool /one /tmpfs /secret; ls /t /run/secrets 2>&1; true'",
    );
    assert!(found.starts_with("line\ntool\none\ntmpfs /t tmpfs"), "{found}");
    assert!(found.contains("\n5\n") && !found.contains("gone") && !found.contains("12345"), "{found}");
    e.docker("rmi build-kit-mounts:1").ok();
}

fn buildkit_output(e: &Engine) {
    let folder = context(
        e,
        "build-kit-output",
        &format!("FROM {BOX} AS a\nRUN echo out > /out\nFROM scratch\nCOPY --from=a /out /\n"),
    );
    build(e, true, &format!("--output type=local,dest={folder}/result {folder}"));
    assert_eq!(std::fs::read_to_string(format!("{folder}/result/out")).unwrap(), "out\n");
}

fn buildkit_prune(e: &Engine) {
    let folder = context(e, "build-kit-prune", &format!("FROM {BOX}\nRUN echo prune > /prune\n"));
    build(e, true, &format!("-t build-kit-prune:1 {folder}"));
    let told = eventually("system df answers", PATIENCE, || {
        let finished = e.docker("system df");
        (finished.code == Some(0)).then_some(finished.stdout)
    });
    assert!(told.contains("Build Cache"), "{told}");
    e.docker("rmi build-kit-prune:1").ok();
    // Only what nothing has used for so long: other builds go on.
    e.docker("builder prune -f --filter until=24h").ok();
    if e.kind != Kind::Docker20 {
        assert!(e.out("buildx ls").contains("running"));
    }
}
