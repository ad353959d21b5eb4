//! The runtime with shims that others wrote. Each test is done with each shim; without `PEERS` there
//! is nothing to test with, which is said on standard error.
//! `PEERS=/path cargo nextest run -p corten-runtime --test peers`

#![allow(clippy::unwrap_used)]

mod lab;

use corten_api::task_types::Status;
use corten_runtime::{Exec, Stdio};
use corten_types::{Any, ErrorClass};
use lab::{Lab, shims, until};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn a_task_runs_and_leaves_nothing() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        let ns = lab.namespace.clone();
        let pid = lab.run("c1", &["sh", "-c", "echo hello; exit 3"]).await;
        let exit = lab.tasks.wait(&ns, "c1", "").await.unwrap();
        assert_eq!((exit.status, exit.pid), (3, pid));
        assert!(exit.at.is_some());
        let process = lab.tasks.get(&ns, "c1", "").await.unwrap();
        assert_eq!((&*process.id, &*process.container_id), ("c1", ""));
        assert_eq!((process.status(), process.exit_status, process.pid), (Status::Stopped, 3, pid));
        let deleted = lab.tasks.delete(&ns, "c1").await.unwrap();
        assert_eq!((deleted.status, deleted.pid), (3, pid));
        assert_eq!(lab.output("c1"), "hello\n");
        assert_eq!(
            lab.events_until_deleted().await,
            ["/tasks/create c1", "/tasks/start c1", "/tasks/exit c1 3", "/tasks/delete c1 3"]
        );
        lab.nothing_is_left("c1").await;
        let error = lab.tasks.wait(&ns, "c1", "").await.unwrap_err();
        assert_eq!((error.class(), error.message()), (ErrorClass::NotFound, "task c1 not found"));
    }
}

#[tokio::test]
async fn output_reaches_a_named_pipe() {
    for shim in shims() {
        let lab = Lab::new(&shim);
        let pipes = ["out", "err"].map(|name| lab.folder.path().join(name));
        let mut readers = pipes.each_ref().map(|pipe| {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
            tokio::net::unix::pipe::OpenOptions::new().open_receiver(pipe).unwrap()
        });
        lab.container("c1", &["sh", "-c", "echo out; echo err >&2"]);
        let mut request = lab.request("c1");
        let [stdout, stderr] = pipes.map(|pipe| pipe.to_string_lossy().into_owned());
        request.stdio = Stdio { stdout, stderr, ..Stdio::default() };
        lab.tasks.create(&lab.namespace, request).await.unwrap();
        lab.tasks.start(&lab.namespace, "c1", "").await.unwrap();
        lab.tasks.wait(&lab.namespace, "c1", "").await.unwrap();
        lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
        for (reader, expected) in readers.iter_mut().zip(["out\n", "err\n"]) {
            let mut output = String::new();
            reader.read_to_string(&mut output).await.unwrap();
            assert_eq!(output, expected);
        }
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn processes_are_added_signalled_and_deleted() {
    for shim in shims() {
        let lab = Lab::new(&shim);
        let (ns, tasks) = (&lab.namespace, &lab.tasks);
        let pid = lab.run("c1", &["sleep", "1000"]).await;
        let exec = lab.exec("e1", &["sh", "-c", "echo inside; exit 7"]);
        tasks.exec(ns, "c1", exec.clone()).await.unwrap();
        let again = tasks.exec(ns, "c1", exec.clone()).await.unwrap_err();
        assert_eq!(again.class(), ErrorClass::AlreadyExists, "{again}");
        let exec_pid = tasks.start(ns, "c1", "e1").await.unwrap();
        assert_ne!(exec_pid, pid);
        assert_eq!(tasks.wait(ns, "c1", "e1").await.unwrap().status, 7);
        assert_eq!(tasks.get(ns, "c1", "e1").await.unwrap().id, "e1");
        let deleted = tasks.delete_process(ns, "c1", "e1").await.unwrap();
        assert_eq!((deleted.status, deleted.pid), (7, exec_pid));
        assert_eq!(lab.output("e1"), "inside\n");
        assert!(tasks.get(ns, "c1", "e1").await.unwrap_err().is_not_found());

        for (id, text) in [("", "exec id cannot be empty"), ("a b", "invalid exec id a b: identifier")] {
            let error = tasks.exec(ns, "c1", Exec { id: id.into(), ..exec.clone() }).await.unwrap_err();
            assert_eq!(error.class(), ErrorClass::InvalidArgument);
            assert!(error.message().starts_with(text), "{error}");
        }
        assert_eq!(tasks.list_pids(ns, "c1").await.unwrap().iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
        let metrics = tasks.metrics(ns, &["id==c1".into()]).await.unwrap();
        assert_eq!(metrics[0].id, "c1");
        assert!(metrics[0].data.is_some());
        assert!(tasks.metrics(ns, &["id==c2".into()]).await.unwrap().is_empty());
        assert!(tasks.delete(ns, "c1").await.is_err(), "it runs");

        let waiting = tokio::spawn({
            let (tasks, ns) = (tasks.clone(), ns.clone());
            async move { tasks.wait(&ns, "c1", "").await.unwrap() }
        });
        tasks.kill(ns, "c1", "", 9, false).await.unwrap();
        assert_eq!(waiting.await.unwrap().status, 137);
        let error = tasks.kill(ns, "c1", "", 9, false).await.unwrap_err();
        assert_eq!(error.to_string(), "process already finished: not found");
        tasks.delete(ns, "c1").await.unwrap();
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn a_task_is_paused_and_resumed() {
    for shim in shims() {
        let lab = Lab::new(&shim);
        let (ns, tasks) = (&lab.namespace, &lab.tasks);
        lab.run("c1", &["sleep", "1000"]).await;
        tasks.pause(ns, "c1").await.unwrap();
        assert_eq!(tasks.get(ns, "c1", "").await.unwrap().status(), Status::Paused);
        tasks.resume(ns, "c1").await.unwrap();
        assert_eq!(tasks.list(ns).await[0].status(), Status::Running);
        tasks.kill(ns, "c1", "", 9, true).await.unwrap();
        tasks.wait(ns, "c1", "").await.unwrap();
        tasks.delete(ns, "c1").await.unwrap();
        assert!(tasks.list(ns).await.is_empty());
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn tasks_outlive_the_daemon() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        let ns = lab.namespace.clone();
        let mut pids = Vec::new();
        for id in ["c1", "c2"] {
            pids.push(lab.run(id, &["sleep", "1000"]).await);
        }
        lab.restart().await;
        let processes = lab.tasks.list(&ns).await;
        assert_eq!(processes.iter().map(|process| process.pid).collect::<Vec<_>>(), pids);
        assert!(processes.iter().all(|process| process.status() == Status::Running));
        let duplicate = lab.tasks.create(&ns, lab.request("c1")).await.unwrap_err();
        assert_eq!(duplicate.to_string(), "task c1: already exists");
        for id in ["c1", "c2"] {
            lab.tasks.kill(&ns, id, "", 15, false).await.unwrap();
            lab.tasks.kill(&ns, id, "", 9, false).await.unwrap();
            assert_eq!(lab.tasks.wait(&ns, id, "").await.unwrap().status, 137);
            lab.tasks.delete(&ns, id).await.unwrap();
        }
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn an_exit_while_the_daemon_was_away_becomes_known() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        let ns = lab.namespace.clone();
        let pid = lab.run("c1", &["sh", "-c", "while ! [ -e /go ]; do sleep 0.01; done; exit 5"]).await;
        lab.stop();
        std::fs::write(lab.folder.path().join("rootfs/go"), "").unwrap();
        until(|| !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
        lab.start().await;
        assert_eq!(lab.event().await, "/tasks/exit c1 5");
        assert_eq!(lab.tasks.get(&ns, "c1", "").await.unwrap().status(), Status::Stopped);
        assert_eq!(lab.tasks.wait(&ns, "c1", "").await.unwrap().status, 5);
        lab.tasks.delete(&ns, "c1").await.unwrap();
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn the_death_of_a_shim_ends_its_task() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        let ns = lab.namespace.clone();
        let pid = lab.run("c1", &["sleep", "1000"]).await;
        assert_eq!(lab.event().await, "/tasks/create c1");
        assert_eq!(lab.event().await, "/tasks/start c1");
        let waiting = tokio::spawn({
            let (tasks, ns) = (lab.tasks.clone(), ns.clone());
            async move { tasks.wait(&ns, "c1", "").await.unwrap() }
        });
        for (exec, arguments) in [("e1", &["sleep", "1000"][..]), ("e2", &["true"])] {
            lab.tasks.exec(&ns, "c1", lab.exec(exec, arguments)).await.unwrap();
            lab.tasks.start(&ns, "c1", exec).await.unwrap();
            assert_eq!(lab.event().await, "/tasks/exec-added");
            assert_eq!(lab.event().await, "/tasks/exec-started");
        }
        assert_eq!(lab.event().await, "/tasks/exit e2 0");
        lab.kill_shims();
        assert_eq!(lab.event().await, "/tasks/exit e1 137");
        assert_eq!(lab.event().await, "/tasks/exit c1 137");
        assert_eq!(lab.event().await, "/tasks/delete c1 137");
        let exit = waiting.await.unwrap();
        assert_eq!((exit.status, exit.pid), (137, pid));
        // The name is free as soon as the old task is cleared away, which creation waits for.
        lab.run("c1", &["true"]).await;
        lab.tasks.wait(&ns, "c1", "").await.unwrap();
        lab.tasks.delete(&ns, "c1").await.unwrap();
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn shims_that_died_while_the_daemon_was_away_are_buried() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        let ns = lab.namespace.clone();
        lab.run("c1", &["sleep", "1000"]).await;
        lab.stop();
        lab.kill_shims();
        // A bundle without any file, the rest of a removal and a stray file do not disturb.
        let folder = lab.bundle("c1").parent().unwrap().to_owned();
        std::fs::create_dir(folder.join("empty")).unwrap();
        std::fs::create_dir(folder.join(".c0")).unwrap();
        std::fs::write(folder.join(".c0/config.json"), "{}").unwrap();
        std::fs::create_dir(lab.work("c9")).unwrap();
        lab.start().await;
        assert_eq!(lab.events_until_deleted().await, ["/tasks/exit c1 137", "/tasks/delete c1 137"]);
        assert!(lab.tasks.get(&ns, "c1", "").await.unwrap_err().is_not_found());
        lab.nothing_is_left("c1").await;
        assert!(!lab.work("c9").exists());
    }
}

#[tokio::test]
async fn a_shim_whose_address_was_never_noted_is_found_and_ended() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        lab.run("c1", &["sleep", "1000"]).await;
        lab.stop();
        // As after a crash of the daemon between the shim's start and the note of its address.
        for name in ["bootstrap.json", "address"] {
            let _ = std::fs::remove_file(lab.bundle("c1").join(name));
        }
        lab.start().await;
        assert_eq!(lab.events_until_deleted().await.last().unwrap(), "/tasks/delete c1 137");
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn a_bundle_of_another_boot_is_not_dialled() {
    for shim in shims() {
        let mut lab = Lab::new(&shim);
        lab.run("c1", &["sleep", "1000"]).await;
        lab.stop();
        lab.kill_shims();
        let note = lab.bundle("c1").join("bootstrap.json");
        let before: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
        // A boot clears it away.
        std::fs::remove_file(before["address"].as_str().unwrap().trim_start_matches("unix://")).unwrap();
        let socket = lab.folder.path().join("trap.sock");
        let trap = tokio::net::UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        let stale = serde_json::json!({
            "version": 2, "address": address, "protocol": "ttrpc", "metadata": {"boot-id": "the one before"},
        });
        std::fs::write(&note, stale.to_string()).unwrap();
        lab.start().await;
        assert_eq!(lab.events_until_deleted().await.last().unwrap(), "/tasks/delete c1 137");
        lab.nothing_is_left("c1").await;
        trap.into_std().unwrap().accept().unwrap_err();
    }
}

#[tokio::test]
async fn a_failed_creation_says_why_and_leaves_nothing() {
    for shim in shims() {
        let lab = Lab::new(&shim);
        lab.container("c1", &["nonsense"]);
        let error = lab.tasks.create(&lab.namespace, lab.request("c1")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("failed to create shim task: OCI runtime create failed: "), "{text}");
        assert!(text.contains("executable file not found in $PATH"), "{text}");
        lab.nothing_is_left("c1").await;
        lab.run("c1", &["true"]).await;
        lab.tasks.wait(&lab.namespace, "c1", "").await.unwrap();
        lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
        lab.nothing_is_left("c1").await;
    }
}

#[tokio::test]
async fn a_creation_that_its_caller_gives_up_is_undone() {
    for shim in shims() {
        let lab = Lab::new(&shim);
        lab.container("c1", &["sleep", "1000"]);
        // Given up after ever more steps; the last ones perhaps after the end.
        for steps in 0..12 {
            let mut creation = Box::pin(lab.tasks.create(&lab.namespace, lab.request("c1")));
            tokio::select! {
                biased;
                _ = &mut creation => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(steps * 5)) => {}
            }
            drop(creation);
            if lab.tasks.get(&lab.namespace, "c1", "").await.is_err() {
                // A later creation of the same name waits for the end of the earlier one.
                lab.tasks.create(&lab.namespace, lab.request("c1")).await.unwrap();
            }
            lab.tasks.kill(&lab.namespace, "c1", "", 9, false).await.unwrap();
            lab.tasks.wait(&lab.namespace, "c1", "").await.unwrap();
            lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
            lab.nothing_is_left("c1").await;
        }
    }
}

#[tokio::test]
async fn many_tasks_run_at_once() {
    for shim in shims() {
        let lab = std::sync::Arc::new(Lab::new(&shim));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..10 {
            let lab = lab.clone();
            tasks.spawn(async move {
                let id = format!("c{n}");
                lab.run(&id, &["sh", "-c", &format!("exit {n}")]).await;
                assert_eq!(lab.tasks.wait(&lab.namespace, &id, "").await.unwrap().status, n);
                lab.tasks.delete(&lab.namespace, &id).await.unwrap();
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        lab.nothing_is_left("c0").await;
    }
}

#[tokio::test]
async fn what_does_not_exist_is_named_as_the_original_names_it() {
    for shim in shims().into_iter().take(1) {
        let lab = Lab::new(&shim);
        let (ns, tasks) = (&lab.namespace, &lab.tasks);
        let error = tasks.get(ns, "zz", "").await.unwrap_err();
        assert_eq!(error.to_string(), format!("container \"zz\" in namespace \"{ns}\": not found"));
        lab.container("tc", &["true"]);
        let error = tasks.kill(ns, "tc", "", 9, false).await.unwrap_err();
        assert_eq!((error.class(), error.message()), (ErrorClass::NotFound, "task tc not found"));
        for (runtime, text) in [
            (
                "io.containerd.nope.v2",
                "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.nope.v2\" \
                 binary not installed \"containerd-shim-nope-v2\": file does not exist",
            ),
            (
                "badname",
                "failed to start shim: failed to resolve runtime path: invalid runtime name badname, \
                 correct runtime name should be either format like `io.containerd.runc.v2` or a full \
                 path to the binary",
            ),
        ] {
            let mut request = lab.request("tc");
            request.runtime = Some(runtime.into());
            let error = tasks.create(ns, request).await.unwrap_err();
            assert_eq!((error.class(), error.message()), (ErrorClass::Unknown, text));
        }
        let mut request = lab.request("tc");
        request.options = Some(Any { type_url: "no.such.Options".into(), value: vec![1] });
        let error = tasks.create(ns, request).await.unwrap_err();
        assert_eq!(error.message(), "type with url no.such.Options: not found");
        assert!(tasks.metrics(ns, &[]).await.unwrap().is_empty());
        let info = tasks.runtime_info(&shim.to_string_lossy(), None).await;
        // Shims before 2.0 answer nothing, which reads as an empty description.
        assert!(info.is_ok() || info.is_err_and(|error| error.class() == ErrorClass::Unknown));
    }
}

#[tokio::test]
async fn a_shim_that_does_not_start_is_quoted() {
    use std::os::unix::fs::PermissionsExt;
    for shim in shims().into_iter().take(1) {
        let lab = Lab::new(&shim);
        let script = lab.folder.path().join("containerd-shim-odd-v1");
        std::fs::write(&script, "#!/bin/sh\n[ \"$9\" = start ] && { echo 'no luck' >&2; exit 1; }\nexit 0\n")
            .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        lab.container("c1", &["true"]);
        let mut request = lab.request("c1");
        request.runtime = Some(script.to_string_lossy().into_owned());
        let error = lab.tasks.create(&lab.namespace, request).await.unwrap_err();
        // With -debug, the action comes last.
        assert!(error.message().starts_with("failed to start shim: start failed: "), "{error}");
        lab.nothing_is_left("c1").await;
    }
}
