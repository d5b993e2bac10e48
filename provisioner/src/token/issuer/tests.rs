use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::token::digest;

mod away;
mod races;

const TOKEN: &str = "abcdef.0123456789abcdef";

/// An `exec` issuer of two scripts in a folder, `mint` and `revoke`. The shell is the program: a
/// file that this process wrote may still be open for writing in a child of another test's, and is
/// then no program that can be started.
fn scripts(dir: &Path, revoke_by: &str, seconds: u64) -> IssuerSettings {
    let script = |name: &str| dir.join(name).to_string_lossy().into_owned();
    IssuerSettings::Exec {
        command: vec!["/bin/sh".into(), script("mint")],
        revoke: Some(vec!["/bin/sh".into(), script("revoke"), revoke_by.into()]),
        timeout: Duration::from_secs(seconds),
    }
}

/// A daemon's issuers over a store of their own, and a folder for secrets and scripts.
struct Site {
    dir: tempfile::TempDir,
    settings: JoinSettings,
    store: Store,
    recorder: Recorder,
    writer: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Site {
    async fn new(issuer: impl FnOnce(&Path) -> IssuerSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, writer) = crate::event::channel(store.clone());
        let settings = JoinSettings {
            clusters: vec![ClusterSettings {
                name: "prod".into(),
                endpoint: "https://10.0.0.1:6443".into(),
                host: "10.0.0.1:6443".into(),
                ttl: Duration::from_secs(3600),
                ca: None,
                issuer: issuer(dir.path()),
            }],
            secret_dirs: vec![dir.path().to_owned()],
        };
        let writer = tokio::spawn(writer.run(tokio_util::sync::CancellationToken::new()));
        Self {
            dir,
            settings,
            store,
            recorder,
            writer,
        }
    }

    /// With an `exec` issuer: files `mint` and `revoke` of the folder, shell scripts.
    async fn scripted(mint: &str, revoke: &str) -> Self {
        let site = Self::new(|dir| scripts(dir, "{token_id}", 20)).await;
        site.script("mint", mint);
        site.script("revoke", revoke);
        site
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        // Renamed over the one before: a shell reads its script while it runs.
        let aside = self.path("aside");
        let text = format!("cd {}\n{text}\n", self.dir.path().display());
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, path).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self) -> Issuers {
        let (store, recorder) = (self.store.clone(), self.recorder.clone());
        Issuers::open(&self.settings, self.dir.path(), store, recorder).unwrap()
    }

    async fn tokens(&self) -> Vec<JoinToken> {
        self.store.list_join_tokens(None, 100).await.unwrap()
    }

    async fn states(&self) -> Vec<&'static str> {
        let tokens = self.tokens().await;
        tokens.iter().map(|token| token.state(now())).collect()
    }

    /// A run that is active until it is made not to be.
    async fn run(&self, state: &str) {
        sqlx::query("INSERT INTO runs (id, machine, workflow, plan, state, requested_by, created_at, deadline) VALUES ('run-1', 'r1n1', 'w', '{}', $1, 't', 0, 0) ON CONFLICT (id) DO UPDATE SET state = excluded.state")
            .bind(state)
            .execute(&self.store.writer)
            .await
            .unwrap();
    }
}

const TOKEN_ONLY: JoinWanted = JoinWanted {
    token: true,
    ca: false,
    bundle: false,
};

fn request(why: &str) -> Request<'_> {
    Request {
        cluster: "prod",
        machine: "r1n1",
        run: "run-1",
        why,
        replaces: true,
    }
}

fn mint_counted() -> String {
    format!("echo x >> minted; echo {TOKEN}")
}

#[tokio::test]
async fn a_token_lives_from_dispatch_to_the_end_of_its_run() {
    let site = Site::scripted(&mint_counted(), "echo $1 >> revoked").await;
    site.run("running").await;
    let issuers = site.open();
    let secrets = issuers.issue(request("step 1"), TOKEN_ONLY).await.unwrap();
    assert_eq!(secrets.token.unwrap().as_str(), TOKEN);
    assert_eq!(secrets.token_id.as_deref(), Some("abcdef"));
    assert_eq!(issuers.sweep().await.unwrap(), None);
    assert_eq!(site.states().await, ["live"]);
    let stored = site.tokens().await.remove(0);
    assert_eq!(stored.digest.as_deref(), Some(digest(TOKEN).as_str()));
    assert!(!format!("{stored:?}").contains("0123456789abcdef"));
    site.run("succeeded").await;
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked"]);
    issuers.sweep().await.unwrap();
    let revoked = std::fs::read_to_string(site.path("revoked")).unwrap();
    assert_eq!(revoked, "abcdef\n", "once");
}

#[tokio::test]
async fn a_call_home_takes_it_back_while_the_run_goes_on() {
    let site = Site::scripted(&mint_counted(), "true").await;
    site.run("running").await;
    let seen = async |at: i64| {
        sqlx::query("INSERT INTO sightings (machine, kind, at, run, data) VALUES ('r1n1', $1, $2, 'run-1', '{}') ON CONFLICT (machine, kind) DO UPDATE SET at = excluded.at")
            .bind(kind::PHONE_HOME)
            .bind(at)
            .execute(&site.store.writer)
            .await
            .unwrap();
    };
    // Of an earlier attempt.
    seen(5).await;
    let issuers = site.open();
    issuers.issue(request("step 1"), TOKEN_ONLY).await.unwrap();
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["live"]);
    seen(now().0).await;
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked"]);
}

#[tokio::test]
async fn an_order_that_is_written_again_takes_the_place_of_the_one_before() {
    let site = Site::scripted(&mint_counted(), "true").await;
    site.run("running").await;
    let issuers = site.open();
    for why in ["step 1", "step 2", "step 1"] {
        issuers.issue(request(why), TOKEN_ONLY).await.unwrap();
    }
    let kept = Request {
        replaces: false,
        ..request("step 1")
    };
    issuers.issue(kept, TOKEN_ONLY).await.unwrap();
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["live", "live", "live", "revoked"]);
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_tried_again_and_told_once() {
    let site = Site::scripted(
        &mint_counted(),
        "echo x >> tries; echo no route >&2; exit 1",
    )
    .await;
    let issuers = site.open();
    // Its run is gone.
    for why in ["step 1", "step 2"] {
        issuers.issue(request(why), TOKEN_ONLY).await.unwrap();
    }
    let look_at = issuers
        .sweep()
        .await
        .unwrap()
        .expect("a time to look again");
    assert!(look_at > now());
    let tries = || {
        std::fs::read_to_string(site.path("tries"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(
        tries(),
        2,
        "each is tried: what fails for one need not for another"
    );
    assert_eq!(site.states().await, ["revoking", "revoking"]);
    let problem = site.tokens().await[0].problem.clone().unwrap();
    assert!(problem.ends_with("ended with 1: no route"), "{problem}");
    issuers.sweep().await.unwrap();
    assert_eq!(tries(), 2, "not before its time");
    let due = async || {
        sqlx::query("UPDATE join_tokens SET retry_at = 1")
            .execute(&site.store.writer)
            .await
            .unwrap();
    };
    due().await;
    issuers.sweep().await.unwrap();
    assert_eq!(tries(), 4);
    assert_eq!(site.tokens().await[0].tries, 2);
    site.script("revoke", "true");
    due().await;
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked", "revoked"]);
    let event = Event::new("test.done", "");
    site.recorder.record_durably(event).await.unwrap();
    let kinds: Vec<String> =
        sqlx::query_scalar("SELECT kind FROM events WHERE kind LIKE 'join.%' ORDER BY id")
            .fetch_all(&site.store.writer)
            .await
            .unwrap();
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!(count(kind::JOIN_UNREVOKED), 2, "once a token: {kinds:?}");
    assert_eq!(count(kind::JOIN_REVOKED), 2, "{kinds:?}");
}

#[tokio::test]
async fn a_failure_leaves_no_record_unless_there_may_be_a_token() {
    let site = Site::scripted("echo sorry >&2; exit 1", "true").await;
    let issuers = site.open();
    let error = issuers
        .issue(request("step 1"), TOKEN_ONLY)
        .await
        .unwrap_err();
    let told = error.to_string();
    assert!(
        told.starts_with("no join token for cluster prod: issuer `exec`: "),
        "{told}"
    );
    assert!(
        told.ends_with("ended with 1: sorry") && error.retryable(),
        "{told}"
    );
    assert_eq!(site.states().await, Vec::<&str>::new());
    site.script("mint", "echo short");
    let error = issuers
        .issue(request("step 1"), TOKEN_ONLY)
        .await
        .unwrap_err();
    assert!(!error.retryable(), "{error}");
    assert!(site.tokens().await[0].superseded);
    // It had made one, perhaps, when it was killed; or had it to show, and failed then.
    for (script, there) in [("kill -9 $$", 2), ("echo $TOKEN; exit 1", 3)] {
        site.script("mint", &script.replace("$TOKEN", TOKEN));
        let error = issuers
            .issue(request("step 1"), TOKEN_ONLY)
            .await
            .unwrap_err();
        assert!(error.retryable(), "{error}");
        let tokens = site.tokens().await;
        assert!(tokens.len() == there && tokens[0].superseded, "{script}");
    }
}

#[tokio::test]
async fn expired_tokens_are_left_alone_after_a_day() {
    let site = Site::scripted(&mint_counted(), "echo $1 >> revoked").await;
    let issuers = site.open();
    issuers.issue(request("step 1"), TOKEN_ONLY).await.unwrap();
    sqlx::query("UPDATE join_tokens SET expires_at = 1")
        .execute(&site.store.writer)
        .await
        .unwrap();
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["expired"]);
    assert!(!site.path("revoked").exists());
}

/// What a text will want of a cluster is looked at before a server loses power.
#[tokio::test]
async fn a_cluster_whose_ca_cannot_be_read_is_not_ready() {
    let mut site = Site::scripted("true", "true").await;
    assert_eq!(site.open().ready("prod").await, Ok(Vec::new()));
    let ca = site.path("ca.pem");
    site.settings.clusters[0].ca = Some(ca.clone());
    let told = site.open().ready("prod").await.unwrap_err();
    let missing = format!("cluster prod: reading {}: No such file", ca.display());
    assert!(told.starts_with(&missing), "{told}");
    std::fs::write(&ca, "not a certificate\n").unwrap();
    let told = site.open().ready("prod").await.unwrap_err();
    assert!(told.ends_with("is not a certificate in PEM"), "{told}");
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
    std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
    assert_eq!(site.open().ready("prod").await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_static_token_is_permanent_and_warned_about() {
    let site = Site::new(|dir| IssuerSettings::Static {
        token: dir.join("token"),
    })
    .await;
    std::fs::write(site.path("token"), "a-token-of-sixteen-or-more\n").unwrap();
    let issuers = site.open();
    let warnings = issuers.ready("prod").await.unwrap();
    assert!(warnings[0].contains("never expires"), "{warnings:?}");
    let secrets = issuers.issue(request("step 1"), TOKEN_ONLY).await.unwrap();
    assert_eq!(secrets.expires_at.as_deref(), Some("never"));
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["permanent"]);
}

#[tokio::test]
async fn talos_secrets_are_imported_and_sealed() {
    let site = Site::new(|_| IssuerSettings::Talos { secrets: None }).await;
    let issuers = site.open();
    let missing = issuers.ready("prod").await.unwrap_err();
    assert_eq!(
        missing,
        "cluster prod: its secrets are missing: anneal cluster import prod FILE"
    );
    let (facts, unread) = issuers.read("prod").await.unwrap();
    assert!(facts.lacks.is_empty());
    assert_eq!(
        unread.map(|error| (error.to_string(), error.retryable())),
        Some((
            "no join token for cluster prod: issuer `talos`: its secrets are missing: anneal cluster import prod FILE".to_owned(),
            true
        ))
    );
    let text = talos::tests::bundle();
    assert!(!issuers.import("prod", &text, "me").await.unwrap());
    let (_, unread) = issuers.read("prod").await.unwrap();
    assert!(unread.is_none(), "{unread:?}");
    assert!(
        issuers.import("prod", &text, "me").await.unwrap(),
        "replaced"
    );
    assert!(matches!(
        issuers.import("prod", "x: 1", "me").await,
        Err(ImportError::Refused(_))
    ));
    assert!(matches!(
        issuers.import("prid", &text, "me").await,
        Err(ImportError::Unknown(_))
    ));
    let stored = site.store.cluster_secrets("prod").await.unwrap().unwrap();
    let hidden = b"4q2gnh.bpqkbz0m9nnv7dzq";
    assert!(!stored.sealed.windows(hidden.len()).any(|w| w == hidden));
    // The next daemon opens them.
    let issuers = site.open();
    let facts = issuers.look("prod").await.unwrap();
    assert!(
        facts.bundle && facts.lacks == ["aescbc_secret"],
        "{facts:?}"
    );
    assert!(issuers.look("prid").await.is_none());
    let bundle = JoinWanted {
        bundle: true,
        ..JoinWanted::default()
    };
    let secrets = issuers.issue(request("step 1"), bundle).await.unwrap();
    assert_eq!(secrets.bundle.unwrap()["cluster_id"], "zZ1aD0nQ");
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["permanent"]);
    let ca = JoinWanted {
        ca: true,
        ..JoinWanted::default()
    };
    issuers.issue(request("step 1"), ca).await.unwrap();
    assert_eq!(site.tokens().await.len(), 1, "a CA is no secret");
}

/// As after a restore of the database without the key.
#[tokio::test]
async fn a_lost_key_is_not_replaced_while_others_need_it() {
    let mut site = Site::new(|_| IssuerSettings::Talos { secrets: None }).await;
    let other = ClusterSettings {
        name: "other".into(),
        ..site.settings.clusters[0].clone()
    };
    site.settings.clusters.push(other);
    let issuers = site.open();
    let text = talos::tests::bundle();
    for name in ["prod", "other"] {
        assert!(!issuers.import(name, &text, "me").await.unwrap());
    }
    let key = site.path("cluster-secrets.key");
    std::fs::remove_file(&key).unwrap();
    let told = match issuers.import("other", &text, "me").await {
        Err(ImportError::Refused(told)) => told,
        imported => panic!("{imported:?}"),
    };
    assert!(
        told.contains("cluster-secrets.key is gone, and the stored secrets of prod open"),
        "{told}"
    );
    assert!(!key.exists());
    // What is imported anew is all that there is.
    assert!(site.store.remove_cluster_secrets("prod").await.unwrap());
    assert!(issuers.import("other", &text, "me").await.unwrap());
    assert_eq!(issuers.ready("other").await, Ok(Vec::new()));
}

#[tokio::test]
async fn secrets_are_read_from_their_folders_only() {
    let site = Site::new(|_| IssuerSettings::Static {
        token: "/etc/passwd".into(),
    })
    .await;
    let (store, recorder) = (site.store.clone(), site.recorder.clone());
    let error = Issuers::open(&site.settings, site.dir.path(), store, recorder).unwrap_err();
    let told = format!("{error:#}");
    assert!(
        told.starts_with(
            "settings of cluster prod: /etc/passwd is not in a directory for cluster secrets"
        ),
        "{told}"
    );
    assert!(told.contains("`join_tokens.secret_dirs`"), "{told}");
}

#[tokio::test]
async fn an_unknown_cluster_is_told_with_the_known_ones() {
    let site = Site::scripted("true", "true").await;
    let issuers = site.open();
    for (name, told) in [
        ("prd", "there is no cluster `prd`, did you mean `prod`?"),
        ("x", "there is no cluster `x`, expected one of: prod"),
    ] {
        assert_eq!(issuers.cluster(name).unwrap_err(), told);
    }
}
