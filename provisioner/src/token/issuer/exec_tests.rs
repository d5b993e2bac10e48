use std::time::Instant;

use anneal_protocol::time::Millis;

use super::super::{Request, record::JoinToken};
use super::*;
use crate::subprocess::SEARCH_PATH;

const TOKEN: &str = "K10abc::abcdef.0123456789abcdef";

fn cluster(command: &[&str], revoke: Option<&[&str]>, seconds: u64) -> ClusterSettings {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ClusterSettings {
        name: "prod".into(),
        endpoint: "https://10.0.0.1:6443".into(),
        host: "10.0.0.1:6443".into(),
        ttl: Duration::from_secs(3600),
        ca: None,
        issuer: IssuerSettings::Exec {
            command: words(command),
            revoke: revoke.map(words),
            timeout: Duration::from_secs(seconds),
        },
    }
}

fn record(cluster: &ClusterSettings) -> JoinToken {
    let request = Request {
        cluster: "prod",
        machine: "r1n1",
        run: "run-1",
        why: "step 3",
        replaces: true,
    };
    JoinToken::new(cluster, request, Millis(0))
}

async fn shell(script: &str) -> Result<String, Failure> {
    let cluster = cluster(&["/bin/sh", "-c", script], None, 20);
    let token = mint(&cluster, &record(&cluster)).await?;
    Ok(token.to_string())
}

#[tokio::test]
async fn the_first_line_is_the_token() {
    let printed = shell(&format!("echo noise >&2; echo '  {TOKEN} '; echo more")).await;
    assert_eq!(printed.unwrap(), TOKEN);
    assert_eq!(token_id(TOKEN).as_deref(), Some("abcdef"));
    assert_eq!(token_id("abcdef.0123456789abcde"), None);
}

#[tokio::test]
async fn the_environment_is_clean_and_the_words_are_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!(
        "env > {0}; pwd >> {0}; printf '%s\\n' \"$@\" >> {0}; echo {TOKEN}",
        out.display()
    );
    let words = [
        "/bin/sh",
        "-c",
        &script,
        "sh",
        "--ttl={ttl}",
        "{description}",
        "$(id)",
        "{x: 1}",
    ];
    let cluster = cluster(&words, None, 20);
    mint(&cluster, &record(&cluster)).await.unwrap();
    let seen = std::fs::read_to_string(out).unwrap();
    let mut lines: Vec<&str> = seen.lines().collect();
    let arguments = lines.split_off(lines.len() - 5);
    let told = "anneal: machine r1n1, run run-1";
    assert_eq!(arguments, ["/", "--ttl=3600s", told, "$(id)", "{x: 1}"]);
    // The shell adds some of its own.
    lines.retain(|line| {
        !["PWD=", "OLDPWD=", "SHLVL=", "_="]
            .iter()
            .any(|own| line.starts_with(own))
    });
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "ANNEAL_CLUSTER=prod",
            "ANNEAL_DESCRIPTION=anneal: machine r1n1, run run-1",
            "ANNEAL_ENDPOINT=https://10.0.0.1:6443",
            "ANNEAL_MACHINE=r1n1",
            "ANNEAL_RUN=run-1",
            "ANNEAL_TTL=3600s",
            "HOME=/nonexistent",
            "LANG=C.UTF-8",
            &format!("PATH={SEARCH_PATH}"),
        ]
    );
}

#[tokio::test]
async fn failures_say_why_and_hide_tokens() {
    let failure = shell(&format!(
        "echo 'no etcd for {TOKEN} and abcdef.0123456789abcdef' >&2; exit 3"
    ))
    .await;
    let failure = failure.unwrap_err();
    assert_eq!(
        failure.reason,
        "/bin/sh ended with 3: no etcd for (redacted) and (redacted)"
    );
    assert!(failure.retryable && !failure.maybe_made);
    for (script, told, maybe_made) in [
        (
            "true",
            "expected a token of 16 to 16384 characters in the first line, found 0",
            true,
        ),
        (
            "echo s3cr3t with blanks, long enough",
            "without blanks",
            true,
        ),
        ("echo s3cr3t", "found 6", true),
        (
            "head -c 70000 /dev/zero | tr '\\0' x",
            "printed more than 65536 bytes",
            true,
        ),
        ("printf '\\377'", "printed what is not text", true),
        ("kill -9 $$", "/bin/sh was killed (signal: 9", true),
        ("echo; exit 1", "/bin/sh ended with 1", false),
        ("echo s3cr3t; exit 1", "/bin/sh ended with 1", true),
    ] {
        let failure = shell(script).await.unwrap_err();
        assert!(
            failure.reason.contains(told),
            "{script}: {}",
            failure.reason
        );
        assert!(!failure.reason.contains("s3cr3t"), "{}", failure.reason);
        assert_eq!(failure.maybe_made, maybe_made, "{script}");
    }
    let cluster = cluster(&["/no/such/program"], None, 20);
    assert!(check(&["/no/such/program".to_owned()]).is_err());
    let failure = mint(&cluster, &record(&cluster)).await.unwrap_err();
    assert!(!failure.retryable, "{}", failure.reason);
}

/// What a command started is killed with it, and nobody waits for it.
#[tokio::test]
async fn time_is_bounded_for_the_whole_family() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
    let cluster = cluster(&["/bin/sh", "-c", &script], None, 5);
    let start = Instant::now();
    let failure = mint(&cluster, &record(&cluster)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(60));
    assert!(
        failure.reason.contains("did not end within 5s"),
        "{}",
        failure.reason
    );
    assert!(failure.maybe_made && failure.retryable);
    let child = std::fs::read_to_string(pid).unwrap();
    let state = format!("/proc/{}/stat", child.trim());
    let gone = || match std::fs::read_to_string(&state) {
        Err(_) => true,
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z')),
    };
    while !gone() {
        assert!(start.elapsed() < Duration::from_secs(60), "the child lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn revokes_by_the_public_half() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("revoke");
    let out = dir.path().join("out");
    let text = format!("echo \"$@\" $ANNEAL_TOKEN_ID > {}\n", out.display());
    std::fs::write(&program, text).unwrap();
    // Not started itself: another test's child may have it open for writing.
    let revoke_by = ["/bin/sh", program.to_str().unwrap(), "{token_id}"];
    let with = cluster(&["/bin/true"], Some(&revoke_by), 20);
    let mut known = record(&with);
    assert!(revoke(&with, &known).await.is_err(), "the id is not known");
    known.token_id = Some("abcdef".into());
    assert!(revoke(&with, &known).await.unwrap());
    assert_eq!(std::fs::read_to_string(out).unwrap(), "abcdef abcdef\n");
    let without = cluster(&["/bin/true"], None, 20);
    assert!(!revoke(&without, &known).await.unwrap());
}
