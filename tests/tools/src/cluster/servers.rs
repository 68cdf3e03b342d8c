//! The servers of a cluster: etcd, the nodes with Patroni and PostgreSQL, and HAProxy, in one folder and on free ports of 127.0.0.1.

use std::{
    env, fs,
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use billing_test_support::{postgres_command, run_unprivileged};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::relay::{Network, Relay};
use crate::faults::daemons::signal;

const NODES: usize = 3;
/// How long the cluster may take to start, and to be complete again.
const COMPLETE: Duration = Duration::from_mins(2);
const REST_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The servers. They end with this process, also when that is killed (`watchdog.sh`).
pub(super) struct Servers {
    folder: PathBuf,
    synchronous: bool,
    etcd: Child,
    _haproxy: Child,
    pub(super) nodes: Vec<Node>,
    /// Where HAProxy listens.
    pub(super) port: u16,
    watchdog: Child,
}

/// A node of the cluster: a Patroni and its PostgreSQL.
pub(super) struct Node {
    name: String,
    folder: PathBuf,
    /// Where its PostgreSQL listens.
    pub(super) port: u16,
    rest: u16,
    /// The way from its Patroni to etcd.
    pub(super) network: Arc<Network>,
    _relay: Relay,
    patroni: Mutex<Option<Child>>,
}

/// A member as Patroni reports it.
#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    role: String,
    state: String,
    #[serde(default)]
    timeline: Option<u64>,
}

#[derive(Deserialize)]
struct Cluster {
    members: Vec<Member>,
}

impl Servers {
    /// Starts all of them and waits until the cluster is complete.
    ///
    /// # Panics
    /// If a program is missing, or the cluster is not complete in time.
    pub(super) async fn start(synchronous: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-cluster-").tempdir().expect("a folder is made");
        // The servers' user passes through it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        let watchdog = Command::new("sh")
            .args(["-c", include_str!("watchdog.sh"), "watchdog"])
            .arg(folder.path())
            // A separate process group, so that Ctrl-C does not reach it.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        // From here on the watchdog alone removes it.
        let folder = folder.keep();
        let ports = free_ports(3 + 2 * NODES);
        let [etcd_port, peer_port, port] = [ports[0], ports[1], ports[2]];
        let etcd = start_etcd(&folder, etcd_port, peer_port);
        let mut nodes = Vec::new();
        for (number, ports) in ports[3..].chunks(2).enumerate() {
            let name = format!("node{}", number + 1);
            nodes.push(Node::new(name, &folder, [ports[0], ports[1]], etcd_port, synchronous).await);
        }
        until_listens(etcd_port).await;
        nodes.iter().for_each(Node::start);
        let haproxy = start_haproxy(&folder, port, &nodes);
        let servers = Self { folder, synchronous, etcd, _haproxy: haproxy, nodes, port, watchdog };
        servers.until_complete().await;
        until_accepts(port).await;
        servers
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a standby confirms each commit.
    pub(super) fn is_synchronous(&self) -> bool {
        self.synchronous
    }

    /// Keeps the folder with all logs.
    pub(super) fn keep_logs(&self) {
        fs::write(self.folder.join("keep"), "").expect("a file in a folder of ours is written");
    }

    pub(super) fn signal_etcd(&self, what: Signal) {
        signal(self.etcd.id(), what);
    }

    /// Waits until each node is a member that works, and a standby is synchronous if one has to be.
    ///
    /// # Panics
    /// If that takes too long.
    pub(super) async fn until_complete(&self) {
        let begun = Instant::now();
        while !self.is_complete().await {
            if begun.elapsed() > COMPLETE {
                self.keep_logs();
                panic!("the cluster is not complete; the logs are in {}", self.folder.display());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether each node works, and a standby is synchronous if one has to be.
    pub(super) async fn is_complete(&self) -> bool {
        let members = self.members().await;
        let count = |role: &str| members.iter().filter(|member| member.role == role).count();
        let standbys = if self.synchronous { count("sync_standby") } else { count("replica") };
        members.len() == NODES
            && members.iter().all(|member| member.state == "running" || member.state == "streaming")
            && members
                .iter()
                .all(|member| member.timeline.is_some() && member.timeline == members[0].timeline)
            && count("leader") == 1
            && standbys >= 1
    }

    /// The leader, if the cluster has one.
    pub(super) async fn leader(&self) -> Option<&Node> {
        self.with_role("leader").await
    }

    /// The standby that takes part in each commit.
    pub(super) async fn synchronous_standby(&self) -> Option<&Node> {
        self.with_role("sync_standby").await
    }

    async fn with_role(&self, role: &str) -> Option<&Node> {
        let members = self.members().await;
        let member = members.into_iter().find(|member| member.role == role)?;
        self.nodes.iter().find(|node| node.name == member.name)
    }

    /// As the first node reports them that answers.
    async fn members(&self) -> Vec<Member> {
        for node in &self.nodes {
            if let Ok(Ok(members)) = timeout(REST_TIMEOUT, node.members()).await {
                return members;
            }
        }
        Vec::new()
    }

    /// Runs `patronictl` with these arguments; returns whether it succeeded.
    pub(super) async fn patronictl(&self, arguments: &[&str]) -> bool {
        let mut command = command("patronictl", &self.nodes[0].folder);
        command.args(["-c", "patroni.yml"]).args(arguments);
        let ended = tokio::process::Command::from(command).status().await;
        ended.expect("patronictl starts").success()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        // It ends whether or not a process waits for it.
        let _ = self.watchdog.wait();
    }
}

impl Node {
    async fn new(name: String, parent: &Path, ports: [u16; 2], etcd: u16, synchronous: bool) -> Self {
        let [port, rest] = ports;
        let network = Arc::new(Network::default());
        let relay = Relay::start(etcd, &network).await.expect("a port is free");
        let folder = parent.join(&name);
        fs::create_dir(&folder).expect("a folder in a folder of ours is made");
        let programs = postgres_command("postgres");
        let programs = Path::new(programs.get_program()).parent().expect("a program is in a folder");
        let configuration = include_str!("patroni.yml")
            .replace("{name}", &name)
            .replace("{rest}", &rest.to_string())
            .replace("{etcd}", &relay.port().to_string())
            .replace("{synchronous}", &synchronous.to_string())
            .replace("{port}", &port.to_string())
            .replace("{programs}", &programs.display().to_string())
            .replace("{folder}", &folder.display().to_string());
        fs::write(folder.join("patroni.yml"), configuration).expect("a file in a folder of ours is written");
        Self { name, folder, port, rest, network, _relay: relay, patroni: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Starts its Patroni, which starts PostgreSQL.
    pub(super) fn start(&self) {
        let mut command = command("patroni", &self.folder);
        let child = command.arg("patroni.yml").spawn().expect("patroni starts");
        *self.patroni.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }

    /// Kills its Patroni and its PostgreSQL, as a host that loses its power.
    pub(super) fn kill(&self) {
        if let Some(mut patroni) = self.patroni.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Both fail only if it has ended already.
            let _ = patroni.kill();
            let _ = patroni.wait();
        }
        self.signal_postgres(Signal::KILL);
    }

    /// Kills the process that starts and supervises the others of PostgreSQL.
    pub(super) fn kill_postmaster(&self) {
        let pid = fs::read_to_string(self.folder.join("data/postmaster.pid")).ok();
        if let Some(pid) = pid.and_then(|text| text.lines().next()?.parse().ok()) {
            signal(pid, Signal::KILL);
        }
    }

    /// Sends a signal to all processes of its PostgreSQL.
    pub(super) fn signal_postgres(&self, what: Signal) {
        self.postgres_processes().for_each(|(pid, _)| signal(pid, what));
    }

    /// Suspends the processes that send the log to the standbys. They continue at the next start of its PostgreSQL.
    pub(super) fn suspend_replication(&self) {
        for (pid, folder) in self.postgres_processes() {
            if fs::read_to_string(folder.join("cmdline")).is_ok_and(|title| title.contains("walsender")) {
                signal(pid, Signal::STOP);
            }
        }
    }

    /// The ids of the processes of its PostgreSQL, which work in its data folder, and their folders in `/proc`.
    fn postgres_processes(&self) -> impl Iterator<Item = (u32, PathBuf)> {
        let data = self.folder.join("data");
        let processes = fs::read_dir("/proc").expect("/proc is readable").flatten();
        processes.filter_map(move |process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let folder = process.path();
            (fs::read_link(folder.join("cwd")).ok()? == data).then_some((pid, folder))
        })
    }

    async fn members(&self) -> io::Result<Vec<Member>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.rest)).await?;
        stream.write_all(b"GET /cluster HTTP/1.0\r\n\r\n").await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let (_, body) = response.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        Ok(serde_json::from_str::<Cluster>(body)?.members)
    }
}

fn start_etcd(parent: &Path, port: u16, peer: u16) -> Child {
    let folder = parent.join("etcd");
    fs::create_dir(&folder).expect("a folder in a folder of ours is made");
    let url = format!("http://127.0.0.1:{port}");
    command("etcd", &folder)
        .args(["--data-dir", "data", "--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--enable-v2", "--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .spawn()
        .expect("etcd starts")
}

fn start_haproxy(parent: &Path, port: u16, nodes: &[Node]) -> Child {
    let folder = parent.join("haproxy");
    fs::create_dir(&folder).expect("a folder in a folder of ours is made");
    let mut configuration = include_str!("haproxy.cfg").replace("{port}", &port.to_string());
    configuration.extend(nodes.iter().map(|node| {
        format!("    server {} 127.0.0.1:{} maxconn 300 check port {}\n", node.name, node.port, node.rest)
    }));
    fs::write(folder.join("haproxy.cfg"), configuration).expect("a file in a folder of ours is written");
    command("haproxy", &folder).args(["-db", "-f", "haproxy.cfg"]).spawn().expect("haproxy starts")
}

/// A server of the distribution that works in this folder, with its log there. It may have few rights.
fn command(program: &str, folder: &Path) -> Command {
    // Debian installs HAProxy into a folder that only root has in PATH.
    let path = format!("{}:/usr/sbin", env::var("PATH").unwrap_or_default());
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let file = folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file());
    let Some(file) = file else {
        panic!(
            "found no `{program}` on PATH; on Debian and Ubuntu, `scripts/nightly.sh cluster` installs it"
        );
    };
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = log.expect("a log in a folder of ours is opened");
    let mut command = Command::new(file);
    run_unprivileged(&mut command, folder).expect("a folder of ours is given away");
    command
        .current_dir(folder)
        .env_clear()
        .envs([("PATH", path.as_str()), ("LC_ALL", "C.UTF-8")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log is opened twice"))
        .stderr(log)
        .process_group(0);
    command
}

/// Ports that are free, and that no outgoing connection gets while a server that had one is away.
fn free_ports(count: usize) -> Vec<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    let first = outgoing / 2 + rand::random_range(0..outgoing / 4);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports: Vec<u16> = (first..outgoing).filter(is_free).take(count).collect();
    assert_eq!(ports.len(), count, "no free ports between {first} and {outgoing}");
    ports
}

async fn until_listens(port: u16) {
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        assert!(begun.elapsed() < COMPLETE, "no server listens on port {port}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until HAProxy has a primary: until then it closes each connection.
async fn until_accepts(port: u16) {
    let begun = Instant::now();
    let closes = || {
        let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(POLL_INTERVAL))?;
        stream.read(&mut [0; 1])
    };
    while !matches!(closes(), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        assert!(begun.elapsed() < COMPLETE, "HAProxy finds no primary");
        sleep(POLL_INTERVAL).await;
    }
}
