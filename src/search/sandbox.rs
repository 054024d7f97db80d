//! Confines a filter process to computing and to using its open file descriptors.
//!
//! jq has no function that opens files or sockets. The confinement is for the case that a defect in the interpreter
//! allows it. There are three layers, because each has gaps that another one closes. A limit on descriptors works on
//! every kernel, but does not stop operations that need no descriptor. Landlock (Linux 5.13) denies access to files, and
//! connections since Linux 6.7. Seccomp denies every system call that is not on a short list.

use std::collections::BTreeMap;
use std::fmt::Display;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Newest set of rights to deny; a kernel that does not know some of them denies the others.
const NEWEST: ABI = ABI::V6;

/// System calls that a filter needs: memory, input and output, exit, and those of the Rust runtime.
const CALLS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Permanently confines the calling thread and every thread that it starts. Call it before starting any thread.
///
/// Returns the layers that this kernel does not offer, in one line, or an empty string if every layer is active.
///
/// # Errors
/// If the limit on descriptors cannot be set.
pub fn confine() -> std::io::Result<String> {
    // The order matters: landlock needs a descriptor and a system call that seccomp denies.
    let landlock = deny_files_and_network().map_err(|reason| format!("no landlock ({reason})"));
    deny_descriptors()?;
    let seccomp = deny_system_calls().map_err(|reason| format!("no seccomp ({reason})"));
    let missing: Vec<String> = [landlock, seccomp].into_iter().filter_map(Result::err).collect();
    Ok(missing.join(", "))
}

fn deny_files_and_network() -> Result<(), String> {
    let denied = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match denied {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => Err("not supported by this kernel".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Denies new descriptors; open ones remain usable.
fn deny_descriptors() -> std::io::Result<()> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

fn deny_system_calls() -> Result<(), String> {
    fn text(error: impl Display) -> String {
        error.to_string()
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    // An abort signals its own process; signals to any other process are denied.
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, std::process::id().into());
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![own.map_err(text)?]).map_err(text)?]);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch).map_err(text)?;
    let program = BpfProgram::try_from(filter).map_err(text)?;
    seccompiler::apply_filter(&program).map_err(text)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read as _};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// Selects the layer in the confined process.
    const LAYER: &str = "GRAVWELL_TEST_SANDBOX_LAYER";

    fn attempts(open: SocketAddr) -> [(&'static str, io::Result<()>); 8] {
        [
            ("reads a file", File::open("/etc/passwd").map(drop)),
            ("writes a file", File::create("/tmp/gravwell-sandbox-test").map(drop)),
            ("lists a directory", std::fs::read_dir("/").map(drop)),
            ("removes a file", std::fs::remove_file("/tmp/gravwell-sandbox-test-nothing")),
            ("connects", TcpStream::connect(open).map(drop)),
            ("sends datagrams", UdpSocket::bind("127.0.0.1:0").map(drop)),
            ("makes sockets", UnixStream::pair().map(drop)),
            ("starts a program", Command::new("/bin/true").status().map(drop)),
        ]
    }

    /// Runs in a separate process, which the test below starts once for each layer.
    #[test]
    fn confined() {
        let Ok(layer) = std::env::var(LAYER) else { return };
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let open = listener.local_addr().expect("address");
        let mut null = File::open("/dev/null").expect("opens");
        match layer.as_str() {
            "landlock" => {
                if let Err(reason) = deny_files_and_network() {
                    eprintln!("SKIPPED: {reason}; usable: true");
                    std::process::exit(0);
                }
            }
            "descriptors" => deny_descriptors().expect("descriptors"),
            "seccomp" => deny_system_calls().expect("seccomp"),
            _ => {
                let missing = confine().expect("descriptors");
                assert!(missing.is_empty() || missing.starts_with("no landlock") && !missing.contains("seccomp"));
            }
        }
        let mut held = String::new();
        for (what, outcome) in attempts(open) {
            if let Err(error) = outcome
                && error.kind() != io::ErrorKind::NotFound
            {
                held += &format!("{what}; ");
            }
        }
        let is_usable = null.read(&mut [0; 8]).is_ok();
        eprintln!("{layer} denies: {held}usable: {is_usable}");
        std::process::exit(0);
    }

    #[test]
    fn p15_a_confined_process_opens_no_file_and_no_socket() {
        let denies = |layer: &str| {
            let mut command = Command::new(std::env::current_exe().expect("the test's program"));
            command.args(["sandbox::tests::confined", "--exact", "--nocapture"]).env(LAYER, layer);
            let output = command.output().expect("runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && text.contains("usable: true"), "{layer}: {text}");
            text
        };
        let everything = [
            "reads a file",
            "writes a file",
            "lists a directory",
            "removes a file",
            "connects",
            "sends datagrams",
            "makes sockets",
            "starts a program",
        ];
        let denied = |text: &str| everything.into_iter().filter(|what| text.contains(what)).collect::<Vec<_>>();
        assert_eq!(denied(&denies("all")), everything);
        assert_eq!(denied(&denies("seccomp")), everything);
        // The other two layers deny files without the help of seccomp.
        let files = &everything[..3];
        let landlock = denies("landlock");
        let is_left_out = landlock.contains("SKIPPED");
        assert!(is_left_out || files.iter().all(|what| landlock.contains(what)), "{landlock}");
        let descriptors = denies("descriptors");
        assert!(files.iter().all(|what| descriptors.contains(what)), "{descriptors}");
        assert!(["connects", "sends datagrams", "makes sockets"].iter().all(|what| descriptors.contains(what)));
        assert!(!std::path::Path::new("/tmp/gravwell-sandbox-test").exists());
    }
}
