//! Standard streams (spec 02 §6): FIFOs, files, logging programs, terminals.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_api::task_v3 as task;
use corten_tests::eventually;
use serde_json::json;

use crate::lab::{Lab, PATIENCE, Shim, words};

/// A container with a script and these streams, created and started.
async fn run(lab: &Lab, script: &str, paths: [&str; 3]) -> Shim {
    lab.prepare("c", script, &json!({}));
    let shim = lab.start("c").await;
    shim.create(streams(lab.request("c"), paths)).await.unwrap();
    shim.start("c", "").await.unwrap();
    shim
}

fn streams(request: task::CreateTaskRequest, [stdin, stdout, stderr]: [&str; 3]) -> task::CreateTaskRequest {
    task::CreateTaskRequest { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), ..request }
}

async fn end(lab: Lab, shim: Shim) {
    shim.shut_down().await;
    lab.finish();
}

/// A reader that is there before its writer, as clients open theirs.
fn open_early(path: &Path) -> std::fs::File {
    const O_NONBLOCK: i32 = 0o4000;
    let file = std::fs::File::options().read(true).custom_flags(O_NONBLOCK).open(path).unwrap();
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    file
}

/// Everything up to the end, read on a thread of its own.
fn collected(mut file: std::fs::File) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn both_outputs_go_to_their_fifos_and_end() {
    let lab = Lab::ours();
    let (out, err) = (lab.fifo("out"), lab.fifo("err"));
    let shim = {
        let paths = ["", out.to_str().unwrap(), err.to_str().unwrap()];
        lab.prepare("c", "echo to stdout; echo to stderr >&2", &json!({}));
        let shim = lab.start("c").await;
        shim.create(streams(lab.request("c"), paths)).await.unwrap();
        shim
    };
    let readers = [collected(open_early(&out)), collected(open_early(&err))];
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert_eq!(
        readers.map(|reader| reader.join().unwrap()),
        [b"to stdout\n".to_vec(), b"to stderr\n".to_vec()]
    );
    end(lab, shim).await;
}

#[tokio::test]
async fn what_was_written_right_before_the_end_waits_for_its_reader() {
    let lab = Lab::ours();
    let out = lab.fifo("out");
    let early = open_early(&out);
    let shim =
        run(&lab, "dd if=/dev/zero bs=1000 count=300 2>/dev/null", ["", out.to_str().unwrap(), ""]).await;
    // More than a pipe holds: part of it is still with the process while nobody reads.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reader = collected(early);
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert_eq!(reader.join().unwrap().len(), 300_000);
    end(lab, shim).await;
}

#[tokio::test]
async fn a_gigabyte_passes_without_loss_and_the_shim_does_not_grow() {
    const GIGABYTE: u64 = 1 << 30;
    let lab = Lab::ours();
    let out = lab.fifo("out");
    let early = open_early(&out);
    lab.prepare("c", "dd if=/dev/zero bs=1048576 count=1024 2>/dev/null", &json!({}));
    let shim = lab.start("c").await;
    shim.create(streams(lab.request("c"), ["", out.to_str().unwrap(), ""])).await.unwrap();
    let server = *lab.servers().first().unwrap();
    let before = anonymous(server);
    let reader = std::thread::spawn(move || std::io::copy(&mut &early, &mut std::io::sink()).unwrap());
    shim.start("c", "").await.unwrap();
    let mut most = before;
    while !reader.is_finished() {
        most = most.max(anonymous(server));
        tokio::time::sleep(Duration::from_millis(20)).await;
        if matches!(shim.state("c", "").await, Ok(state) if state.status() == corten_api::task_types::Status::Stopped)
        {
            shim.delete("c", "").await.unwrap();
        }
    }
    assert_eq!(reader.join().unwrap(), GIGABYTE);
    assert!(most < before + 512, "{before} kB before, {most} kB at most");
    end(lab, shim).await;
}

/// kB of memory that are a process' own.
fn anonymous(pid: i32) -> u64 {
    let rollup = text(Path::new(&format!("/proc/{pid}/smaps_rollup")));
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn readers_go_away_and_come_back_and_miss_nothing() {
    let lab = Lab::ours();
    let out = lab.fifo("out");
    let script = "i=0; while test $i -lt 30000; do echo $((100000+i)); i=$((i+1)); done";
    let shim = run(&lab, script, ["", out.to_str().unwrap(), ""]).await;
    let mut all = Vec::new();
    // 7 bytes a line; each reader takes some lines and leaves while the process still writes.
    for lines in [1, 1000, 5000, 3000, 10_000] {
        let mut part = vec![0; lines * 7];
        let mut reader = open_early(&out);
        let part = tokio::task::spawn_blocking(move || {
            reader.read_exact(&mut part).unwrap();
            part
        });
        all.extend(part.await.unwrap());
        assert_eq!(shim.state("c", "").await.unwrap().exit_status, 0);
    }
    let reader = collected(open_early(&out));
    assert_eq!(shim.wait("c", "").await.unwrap(), 0, "nobody's going away ended it");
    shim.delete("c", "").await.unwrap();
    all.extend(reader.join().unwrap());
    let expected: String = (0..30_000).map(|number| format!("{}\n", 100_000 + number)).collect();
    assert!(String::from_utf8(all).unwrap() == expected, "lines are missing, doubled or out of order");
    end(lab, shim).await;
}

#[tokio::test]
async fn input_arrives_whole_and_ends_when_it_is_closed() {
    let lab = Lab::ours();
    let (stdin, out) = (lab.fifo("in"), lab.scratch.join("out"));
    std::fs::write(&out, "").unwrap();
    lab.prepare("c", "cat", &json!({}));
    let shim = lab.start("c").await;
    let paths = [stdin.to_str().unwrap(), out.to_str().unwrap(), ""];
    shim.create(streams(lab.request("c"), paths)).await.unwrap();
    shim.start("c", "").await.unwrap();
    let data: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let mut writer = std::fs::File::options().write(true).open(&stdin).unwrap();
    let copy = data.clone();
    tokio::task::spawn_blocking(move || writer.write_all(&copy).unwrap()).await.unwrap();
    // The writer is gone, but others could come: it does not end before it is said.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(shim.state("c", "").await.unwrap().status(), corten_api::task_types::Status::Running);
    shim.close_stdin("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert!(std::fs::read(out).unwrap() == data);
    end(lab, shim).await;
}

#[tokio::test]
async fn plain_files_are_appended_to_and_file_uris_are_made() {
    let lab = Lab::ours();
    let plain = lab.scratch.join("plain");
    std::fs::write(&plain, "before\n").unwrap();
    let path = plain.to_str().unwrap();
    let shim = run(&lab, "echo out; cat", ["/dev/null", path, path]).await;
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert_eq!(text(&plain), "before\nout\n");
    let made = lab.scratch.join("a/b/c.log");
    let uri = format!("file://{}", made.display());
    lab.prepare("d", "echo out; echo err >&2", &json!({}));
    shim.create(streams(lab.request("d"), ["", &uri, &uri])).await.unwrap();
    shim.start("d", "").await.unwrap();
    assert_eq!(shim.wait("d", "").await.unwrap(), 0);
    shim.delete("d", "").await.unwrap();
    assert_eq!(text(&made), "out\nerr\n");
    assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    end(lab, shim).await;
}

#[tokio::test]
async fn what_no_stream_can_be_is_refused_as_debians_shim_refuses_it() {
    let refused = |lab: Lab| async move {
        lab.prepare("c", "true", &json!({}));
        let shim = lab.start("c").await;
        let mut seen = Vec::new();
        for uri in ["nonsense:///x", "http://x", "binary:///no/such/logger"] {
            let error = shim.create(streams(lab.request("c"), ["", uri, uri])).await.unwrap_err();
            // What the standard library of the other language says around it is its own.
            let text = words(&error).replace("fork/exec ", "");
            seen.push(text.split(": no such file").next().unwrap().to_owned());
        }
        if lab.runtime.is_some() {
            // It leaves some of them half made, so that the name cannot be used again.
            return seen;
        }
        let missing = lab.scratch.join("missing");
        assert!(shim.create(streams(lab.request("c"), ["", missing.to_str().unwrap(), ""])).await.is_err());
        shim.create(lab.request("c")).await.unwrap();
        shim.start("c", "").await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        end(lab, shim).await;
        seen
    };
    assert_eq!(refused(Lab::ours()).await, refused(Lab::debians()).await);
}

/// A logging program: a script.
fn logger(lab: &Lab, script: &str) -> PathBuf {
    let path = lab.scratch.join("logger");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_logging_program_gets_both_outputs_and_has_written_all_when_the_task_is_deleted() {
    let lab = Lab::ours();
    let log = lab.scratch.join("log");
    // It is slow, and says so late that it is ready.
    let script = "sleep 0.3; echo ready $CONTAINER_ID $CONTAINER_NAMESPACE \"$@\" >$2; exec 5>&-
        while read line <&3; do sleep 0.1; echo out $line >>$2; done
        while read line <&4; do echo err $line >>$2; done; sleep 0.3; echo end >>$2";
    let program = logger(&lab, script);
    let uri = format!(
        "binary://{}?log={}&more=a%20b",
        program.display(),
        log.display().to_string().replace('/', "%2F")
    );
    lab.prepare("c", "echo 1; echo 2 >&2; echo 3", &json!({}));
    let shim = lab.start("c").await;
    shim.create(streams(lab.request("c"), ["", &uri, &uri])).await.unwrap();
    assert!(text(&log).starts_with("ready c "), "it was waited for: {:?}", text(&log));
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    let said = text(&log);
    let (first, rest) = said.split_once('\n').unwrap();
    let expected = format!("ready c {} log {} more a b", lab.namespace, log.display());
    assert_eq!((first, rest), (&*expected, "out 1\nout 3\nerr 2\nend\n"));
    end(lab, shim).await;
}

#[tokio::test]
async fn a_logging_program_that_does_not_end_by_itself_is_ended() {
    let lab = Lab::ours();
    let log = lab.scratch.join("log");
    let program =
        logger(&lab, "trap 'echo asked to end >>$2; exit' TERM; exec 5>&-; while :; do sleep 0.1; done");
    let uri = format!("binary://{}?log={}", program.display(), log.display());
    let shim = run(&lab, "echo 1", ["", &uri, &uri]).await;
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert_eq!(text(&log), "asked to end\n");
    end(lab, shim).await;
}

#[tokio::test]
async fn a_logging_program_of_the_second_kind_must_say_that_it_is_ready() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    let uri = format!("binary-v2://{}", logger(&lab, "exit 0").display());
    let error = shim.create(streams(lab.request("c"), ["", &uri, &uri])).await.unwrap_err();
    let expected = "logging binary did not call ready (it may have crashed or exited prematurely)";
    assert!(error.message().contains(expected), "{error}");
    logger(&lab, "printf x >&5; exec 5>&-; cat <&3");
    shim.create(streams(lab.request("c"), ["", &uri, &uri])).await.unwrap();
    shim.start("c", "").await.unwrap();
    shim.wait("c", "").await.unwrap();
    shim.delete("c", "").await.unwrap();
    end(lab, shim).await;
}

#[tokio::test]
async fn terminals_have_a_size_take_input_and_lose_nothing() {
    let lab = Lab::ours();
    let (stdin, out) = (lab.fifo("in"), lab.fifo("out"));
    let script = "trap 'stty size' WINCH; test -t 0 && echo is one; read line; echo got $line; \
        dd if=/dev/zero bs=1000 count=200 2>/dev/null; echo; echo over";
    lab.prepare("c", script, &json!({"process": {"terminal": true}}));
    let shim = lab.start("c").await;
    let request = streams(lab.request("c"), [stdin.to_str().unwrap(), out.to_str().unwrap(), ""]);
    let early = open_early(&out);
    shim.create(task::CreateTaskRequest { terminal: true, ..request }).await.unwrap();
    let reader = collected(early);
    let resized = task::ResizePtyRequest { id: "c".into(), width: 77, height: 33, ..Default::default() };
    shim.call::<_, ()>("ResizePty", &resized).await.unwrap();
    shim.start("c", "").await.unwrap();
    let mut writer = std::fs::File::options().write(true).open(&stdin).unwrap();
    writer.write_all(b"hello\n").unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    assert!(shim.state("c", "").await.unwrap().terminal);
    shim.delete("c", "").await.unwrap();
    let said = reader.join().unwrap();
    let zeros = said.iter().filter(|byte| **byte == 0).count();
    let said = String::from_utf8_lossy(&said).replace('\0', "");
    assert_eq!(zeros, 200_000);
    assert!(
        said.contains("is one\r\n") && said.contains("got hello\r\n") && said.ends_with("over\r\n"),
        "{said:?}"
    );
    end(lab, shim).await;
}

#[tokio::test]
async fn a_process_that_is_added_has_a_terminal_that_changes_its_size() {
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    let (stdin, out) = (lab.fifo("in"), lab.fifo("out"));
    let mut early = open_early(&out);
    let paths = [stdin.to_str().unwrap(), out.to_str().unwrap(), ""];
    shim.exec("c", "e", "echo started; read line; stty size; exit 4", paths, true).await.unwrap();
    shim.start("c", "e").await.unwrap();
    let mut said = vec![0; "started\r\n".len()];
    early.read_exact(&mut said).unwrap();
    let resized = task::ResizePtyRequest { id: "c".into(), exec_id: "e".into(), width: 101, height: 51 };
    shim.call::<_, ()>("ResizePty", &resized).await.unwrap();
    std::fs::File::options().write(true).open(&stdin).unwrap().write_all(b"\n").unwrap();
    let reader = collected(early);
    assert_eq!(shim.wait("c", "e").await.unwrap(), 4);
    shim.delete("c", "e").await.unwrap();
    let said = String::from_utf8(reader.join().unwrap()).unwrap();
    assert!(said.contains("51 101\r\n"), "{said:?}");
    shim.remove("c").await;
    end(lab, shim).await;
}

#[tokio::test]
async fn a_logging_program_sees_what_a_terminal_shows() {
    let lab = Lab::ours();
    let log = lab.scratch.join("log");
    let program = logger(&lab, "exec 5>&-; cat <&3 >$2; echo end >>$2");
    let uri = format!("binary://{}?log={}", program.display(), log.display());
    lab.prepare("c", "test -t 1 && echo a terminal", &json!({"process": {"terminal": true}}));
    let shim = lab.start("c").await;
    let request = streams(lab.request("c"), ["", &uri, ""]);
    shim.create(task::CreateTaskRequest { terminal: true, ..request }).await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    assert_eq!(text(&log), "a terminal\r\nend\n");
    end(lab, shim).await;
}

#[tokio::test]
async fn tasks_that_are_gone_leave_no_descriptors_in_a_shared_shim() {
    let lab = Lab::ours();
    let shim = lab.created("keeper", "sleep 1000", &json!({})).await;
    shim.start("keeper", "").await.unwrap();
    let server = *lab.servers().first().unwrap();
    let open = move || std::fs::read_dir(format!("/proc/{server}/fd")).unwrap().count();
    let round = async |number: usize| {
        let (id, exec) = (format!("c{number}"), format!("e{number}"));
        let (stdin, out) = (lab.fifo(&format!("in{number}")), lab.fifo(&format!("out{number}")));
        let early = open_early(&out);
        let paths = [stdin.to_str().unwrap(), out.to_str().unwrap(), ""];
        lab.prepare(&id, "cat", &json!({}));
        shim.create(streams(lab.request(&id), paths)).await.unwrap();
        shim.start(&id, "").await.unwrap();
        shim.close_stdin(&id, "").await.unwrap();
        shim.wait(&id, "").await.unwrap();
        shim.delete(&id, "").await.unwrap();
        shim.exec("keeper", &exec, "exit 1", paths, true).await.unwrap();
        shim.start("keeper", &exec).await.unwrap();
        shim.wait("keeper", &exec).await.unwrap();
        shim.delete("keeper", &exec).await.unwrap();
        drop(early);
    };
    round(0).await;
    let before = open();
    for number in 1..6 {
        round(number).await;
    }
    tokio::task::spawn_blocking(move || {
        eventually("descriptors are closed", PATIENCE, || (open() <= before).then_some(()));
    })
    .await
    .unwrap();
    shim.remove("keeper").await;
    end(lab, shim).await;
}
