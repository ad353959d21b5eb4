//! Every method in every state, on our shim and on Debian's: the same answers, the same events.

use corten_api::task_v3 as task;
use corten_types::{Any, Result};
use serde_json::json;

use crate::lab::{Lab, Shim, V2, V3, words};

/// Answers one after the other, in words.
#[derive(Default)]
struct Seen(Vec<String>);

impl Seen {
    fn note<T>(&mut self, step: &str, result: &Result<T>, show: impl Fn(&T) -> String) {
        let words = result.as_ref().map_or_else(words, show);
        self.0.push(format!("{step}: {words}"));
    }

    fn done<T>(&mut self, step: &str, result: Result<T>) {
        self.note(step, &result, |_| "done".into());
    }

    async fn state(&mut self, step: &str, shim: &Shim, id: &str, exec: &str) {
        let show = |one: &task::StateResponse| {
            format!(
                "{} {:?} pid {} exit {} ended {} exec {:?}",
                one.id,
                one.status(),
                one.pid > 0,
                one.exit_status,
                one.exited_at.is_some_and(|at| at.seconds > 0),
                one.exec_id
            )
        };
        self.note(step, &shim.state(id, exec).await, show);
    }

    async fn deleted(&mut self, step: &str, shim: &Shim, id: &str, exec: &str) {
        let show = |one: &task::DeleteResponse| {
            format!(
                "pid {} exit {} ended {}",
                one.pid > 0,
                one.exit_status,
                one.exited_at.is_some_and(|at| at.seconds > 0)
            )
        };
        self.note(step, &shim.delete(id, exec).await, show);
    }
}

const QUIET: [&str; 3] = ["", "", ""];

async fn pause(shim: &Shim, id: &str) -> Result<()> {
    shim.call("Pause", &task::PauseRequest { id: id.into() }).await
}

async fn resume(shim: &Shim, id: &str) -> Result<()> {
    shim.call("Resume", &task::ResumeRequest { id: id.into() }).await
}

async fn resize(shim: &Shim, id: &str, exec: &str) -> Result<()> {
    let request = task::ResizePtyRequest { id: id.into(), exec_id: exec.into(), width: 80, height: 25 };
    shim.call("ResizePty", &request).await
}

async fn update(shim: &Shim, id: &str, resources: &str) -> Result<()> {
    let resources = Any { type_url: String::new(), value: resources.into() };
    let request = task::UpdateTaskRequest { id: id.into(), resources: Some(resources), ..Default::default() };
    shim.call("Update", &request).await
}

async fn stats(shim: &Shim, id: &str) -> Result<Any> {
    let answer = shim.call::<_, task::StatsResponse>("Stats", &task::StatsRequest { id: id.into() }).await?;
    Ok(answer.stats.unwrap_or_default())
}

async fn pids(shim: &Shim, id: &str) -> Result<Vec<String>> {
    let answer = shim.call::<_, task::PidsResponse>("Pids", &task::PidsRequest { id: id.into() }).await?;
    let show = |info: &Any| corten_api::unpack::<corten_api::runc::ProcessDetails>(info).unwrap().exec_id;
    Ok(answer.processes.iter().map(|one| one.info.as_ref().map_or_else(|| "-".into(), show)).collect())
}

async fn connect(shim: &Shim, id: &str) -> Result<task::ConnectResponse> {
    shim.call("Connect", &task::ConnectRequest { id: id.into() }).await
}

/// All methods on a container that is not there.
async fn nobody(seen: &mut Seen, shim: &Shim) {
    seen.state("state of nobody", shim, "no", "").await;
    seen.done("start nobody", shim.start("no", "").await);
    seen.deleted("delete nobody", shim, "no", "").await;
    seen.done("exec nobody", shim.exec("no", "e", "true", QUIET, false).await);
    seen.done("kill nobody", shim.kill("no", "", 9, false).await);
    seen.done("kill all of nobody", shim.kill("no", "", 9, true).await);
    seen.done("wait for nobody", shim.wait("no", "").await);
    seen.done("pause nobody", pause(shim, "no").await);
    seen.done("resume nobody", resume(shim, "no").await);
    seen.done("resize nobody", resize(shim, "no", "").await);
    seen.done("close nobody", shim.close_stdin("no", "").await);
    seen.done("update nobody", update(shim, "no", "{}").await);
    seen.done("stats of nobody", stats(shim, "no").await);
    seen.done("pids of nobody", pids(shim, "no").await);
    let checkpoint = task::CheckpointTaskRequest { id: "no".into(), ..Default::default() };
    seen.done("checkpoint nobody", shim.call::<_, ()>("Checkpoint", &checkpoint).await);
    let show =
        |one: &task::ConnectResponse| format!("{} {} {:?}", one.shim_pid > 0, one.task_pid, one.version);
    seen.note("connect to nobody", &connect(shim, "no").await, show);
    seen.note("no such method", &shim.call::<_, ()>("Nothing", &()).await, |()| String::new());
}

/// A container that waits to be started.
async fn created(seen: &mut Seen, shim: &Shim, lab: &Lab) {
    seen.state("created", shim, "c", "").await;
    seen.state("created, of an exec", shim, "c", "none").await;
    seen.done("create again", shim.create(lab.request("c")).await);
    seen.done("pause created", pause(shim, "c").await);
    seen.done("resume created", resume(shim, "c").await);
    seen.done("start no exec", shim.start("c", "none").await);
    seen.done("update created", update(shim, "c", r#"{"pids":{"limit":100}}"#).await);
    seen.done("resize without a terminal", resize(shim, "c", "").await);
    seen.note("stats of created", &stats(shim, "c").await, |any| any.type_url.clone());
}

/// A container that runs, and processes that are added.
async fn running(seen: &mut Seen, shim: &Shim) {
    seen.done("start", shim.start("c", "").await);
    seen.done("start again", shim.start("c", "").await);
    seen.state("running", shim, "c", "").await;
    // The shell of the container may have started its child by now, or not, before or after the other process.
    let names = |pids: &Vec<String>| {
        let mut names = pids.clone();
        names.sort();
        names.dedup();
        format!("{names:?}")
    };
    seen.note("pids", &pids(shim, "c").await, names);
    let show =
        |one: &task::ConnectResponse| format!("{} {} {:?}", one.shim_pid > 0, one.task_pid > 0, one.version);
    seen.note("connect", &connect(shim, "c").await, show);
    seen.deleted("delete running", shim, "c", "").await;
    seen.done("resume running", resume(shim, "c").await);
    seen.done("exec", shim.exec("c", "e", "sleep 100", QUIET, false).await);
    seen.done("exec again", shim.exec("c", "e", "sleep 100", QUIET, false).await);
    seen.state("added", shim, "c", "e").await;
    seen.done("kill what is only added", shim.kill("c", "e", 9, false).await);
    seen.done("start exec", shim.start("c", "e").await);
    seen.state("exec", shim, "c", "e").await;
    seen.note("pids with exec", &pids(shim, "c").await, names);
    seen.deleted("delete running exec", shim, "c", "e").await;
    seen.done("pause", pause(shim, "c").await);
    seen.state("paused", shim, "c", "").await;
    seen.state("exec of paused", shim, "c", "e").await;
    seen.done("pause again", pause(shim, "c").await);
    seen.done("start paused", shim.start("c", "").await);
    seen.done("exec in paused", shim.exec("c", "f", "true", QUIET, false).await);
    seen.deleted("delete paused", shim, "c", "").await;
    seen.done("resume", resume(shim, "c").await);
    seen.done("kill exec", shim.kill("c", "e", 15, false).await);
    seen.note("wait for exec", &shim.wait("c", "e").await, |status| status.to_string());
    seen.state("exec ended", shim, "c", "e").await;
    seen.done("kill ended exec", shim.kill("c", "e", 9, false).await);
    seen.deleted("delete exec", shim, "c", "e").await;
    seen.state("exec deleted", shim, "c", "e").await;
    seen.deleted("delete exec again", shim, "c", "e").await;
    seen.done("exec of nothing", shim.exec("c", "g", "exec nothing-there", QUIET, false).await);
    seen.done("start of nothing", shim.start("c", "g").await);
    seen.note("its end", &shim.wait("c", "g").await, |status| status.to_string());
    seen.deleted("delete of nothing", shim, "c", "g").await;
    seen.done("kill with a signal that does not end it", shim.kill("c", "", 28, false).await);
    seen.done(
        "kill with no signal there is",
        shim.kill("c", "", 1000, false)
            .await
            .map_err(|error| corten_types::Error::bare(error.class(), "no such signal")),
    );
    let nothing: Result<()> =
        shim.call("Shutdown", &task::ShutdownRequest { id: "c".into(), now: true }).await;
    seen.done("shutdown while it runs", nothing);
}

/// A container that has ended.
async fn stopped(seen: &mut Seen, shim: &Shim) {
    seen.done("kill", shim.kill("c", "", 9, false).await);
    seen.note("wait", &shim.wait("c", "").await, |status| status.to_string());
    seen.state("stopped", shim, "c", "").await;
    seen.done("kill stopped", shim.kill("c", "", 9, false).await);
    seen.done("start stopped", shim.start("c", "").await);
    seen.done("exec in stopped", shim.exec("c", "h", "true", QUIET, false).await);
    seen.done("pause stopped", pause(shim, "c").await);
    seen.done("resume stopped", resume(shim, "c").await);
    seen.done("update stopped", update(shim, "c", "{}").await);
    seen.done("resize stopped", resize(shim, "c", "").await);
    seen.deleted("delete", shim, "c", "").await;
    seen.state("deleted", shim, "c", "").await;
}

/// A life through all states; what was seen, and told.
async fn life(lab: Lab, service: &'static str) -> (Vec<String>, Vec<String>) {
    lab.prepare("c", "trap : WINCH; while :; do sleep 1000 & wait; done", &json!({}));
    let shim = lab.start("c").await.named(service);
    let mut seen = Seen::default();
    nobody(&mut seen, &shim).await;
    shim.create(lab.request("c")).await.unwrap();
    created(&mut seen, &shim, &lab).await;
    running(&mut seen, &shim).await;
    stopped(&mut seen, &shim).await;
    let told = lab.events(12).await;
    shim.shut_down().await;
    lab.finish();
    (seen.0.iter().map(|line| line.replace(service, "SERVICE")).collect(), told)
}

#[tokio::test]
async fn every_method_in_every_state_answers_as_debians_shim() {
    let (ours, theirs) = (life(Lab::ours(), V3).await, life(Lab::debians(), V3).await);
    let differ: Vec<_> = ours.0.iter().zip(&theirs.0).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert_eq!(ours, theirs);
}

/// The sizes of large pages that there are figures of, which have no order.
fn sizes<'a>(pages: impl Iterator<Item = &'a str>) -> String {
    let mut sizes: Vec<&str> = pages.collect();
    sizes.sort_unstable();
    sizes.join(",")
}

/// Which figures there are, and those that do not change.
fn shape(figures: &Any) -> Vec<String> {
    let mut seen = vec![figures.type_url.clone()];
    let mut note = |name: &str, value: String| seen.push(format!("{name} {value}"));
    if let Ok(one) = corten_api::unpack::<corten_api::cgroups_v2::Metrics>(figures) {
        note("pids", format!("{:?}", one.pids.map(|pids| pids.limit)));
        note("cpu", one.cpu.is_some_and(|cpu| cpu.usage_usec > 0).to_string());
        note(
            "memory",
            format!("{:?}", one.memory.map(|it| (it.usage > 0, it.usage_limit, it.anon > 0, it.pgfault > 0))),
        );
        note("events", one.memory_events.is_some().to_string());
        note("pages", sizes(one.hugetlb.iter().map(|pages| pages.pagesize.as_str())));
        return seen;
    }
    let one = corten_api::unpack::<corten_api::cgroups_v1::Metrics>(figures).unwrap();
    note("pids", format!("{:?}", one.pids.map(|pids| pids.limit)));
    let cpu = one.cpu.unwrap();
    let usage = cpu.usage.unwrap();
    note("cpu", format!("{} {} {}", usage.total > 0, usage.per_cpu.len(), cpu.throttling.is_some()));
    let memory = one.memory.unwrap();
    let limits = [memory.usage, memory.swap, memory.kernel_tcp].map(|it| it.map(|it| it.limit));
    note("memory", format!("{limits:?} {} {}", memory.total_rss > 0, memory.hierarchical_memory_limit));
    note("out of memory", format!("{:?}", one.memory_oom_control));
    note("blocks", one.blkio.is_some().to_string());
    note("pages", sizes(one.hugetlb.iter().map(|pages| pages.pagesize.as_str())));
    seen
}

#[tokio::test]
async fn figures_are_those_of_debians_shim() {
    let figures = async |lab: Lab| {
        let limits = json!({"linux": {"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 77}, "cpu": {"shares": 512}}}});
        let shim = lab.created("c", "sleep 1000", &limits).await;
        shim.start("c", "").await.unwrap();
        shim.exec("c", "e", "true", QUIET, false).await.unwrap();
        shim.start("c", "e").await.unwrap();
        shim.wait("c", "e").await.unwrap();
        let shape = shape(&stats(&shim, "c").await.unwrap());
        shim.remove("c").await;
        shim.shut_down().await;
        lab.finish();
        shape
    };
    assert_eq!(figures(Lab::ours()).await, figures(Lab::debians()).await);
}

#[tokio::test]
async fn the_older_name_of_the_service_answers_the_same() {
    assert_eq!(life(Lab::ours(), V2).await, life(Lab::ours(), V3).await);
}

#[tokio::test]
async fn a_process_that_ends_before_its_start_is_answered_is_told_in_order() {
    let lab = Lab::ours();
    lab.prepare("c", "sleep 1000", &json!({}));
    let shim = lab.start("c").await;
    for round in 0..20 {
        let id = format!("quick-{round}");
        lab.prepare(&id, "exit 3", &json!({}));
        shim.create(lab.request(&id)).await.unwrap();
        assert!(shim.start(&id, "").await.unwrap() > 0);
        assert_eq!(shim.wait(&id, "").await.unwrap(), 3);
        shim.delete(&id, "").await.unwrap();
        let told = lab.events((round + 1) * 4).await;
        let expected = ["create", "start", "exit", "delete"].map(|topic| {
            let status = match topic {
                "exit" => format!(" {id} 3"),
                "delete" => " 3".into(),
                _ => String::new(),
            };
            format!("/tasks/{topic} {id}{status}")
        });
        assert_eq!(told.get(round * 4..), Some(expected.as_slice()));
    }
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn the_end_of_init_is_told_after_those_of_all_that_were_added() {
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    for exec in ["e1", "e2", "e3"] {
        shim.exec("c", exec, "sleep 1000", QUIET, false).await.unwrap();
        shim.start("c", exec).await.unwrap();
    }
    shim.kill("c", "", 9, false).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    let told = lab.events(12).await;
    assert_eq!(told.last().unwrap(), "/tasks/exit c c 137", "{told:?}");
    shim.delete("c", "").await.unwrap();
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn what_shares_the_hosts_processes_does_not_outlive_its_init() {
    let lab = Lab::ours();
    let shared = json!({"linux": {"namespaces": [{"type": "network"}, {"type": "mount"}]}});
    let shim = lab.created("c", "sleep 1000 & sleep 1000 & exit 0", &shared).await;
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    shim.delete("c", "").await.unwrap();
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn all_processes_of_a_container_get_a_signal() {
    let lab = Lab::ours();
    let script = "trap 'sleep 1; exit 7' USR1; while :; do sleep 1000 & wait; done";
    // What ends the first process ends the others at once, by another signal.
    let shim = lab.created("c", script, &json!({})).await;
    shim.start("c", "").await.unwrap();
    shim.exec("c", "e", "exec sleep 1000", QUIET, false).await.unwrap();
    shim.start("c", "e").await.unwrap();
    shim.kill("c", "", 10, true).await.unwrap();
    assert_eq!(shim.wait("c", "e").await.unwrap(), 138);
    assert_eq!(shim.wait("c", "").await.unwrap(), 7);
    shim.delete("c", "").await.unwrap();
    shim.shut_down().await;
    lab.finish();
}
