//! Tokens that are taken back while they are made, and those that nobody knows of.

use super::*;

/// Waits for a file that a script writes.
async fn appears(path: &Path) {
    let there = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(30);
    let waited = tokio::time::timeout(limit, there).await;
    waited.unwrap_or_else(|_| panic!("{} does not come", path.display()));
}

/// Makes every token as old as can be.
async fn age(site: &Site) {
    sqlx::query("UPDATE join_tokens SET created_at = 1, retry_at = NULL")
        .execute(&site.store.writer)
        .await
        .unwrap();
}

/// A daemon that dies between asking and hearing, and a run that ends then.
async fn died(revoke: &str) -> Site {
    let site = Site::scripted("echo x > asked; sleep 600", revoke).await;
    site.run("running").await;
    let issuers = site.open();
    let asked = site.path("asked");
    tokio::select! {
        _ = issuers.issue(request("step 1"), TOKEN_ONLY) => panic!("it does not end"),
        () = appears(&asked) => {}
    }
    drop(issuers);
    assert_eq!(site.states().await, ["asked"]);
    site.run("failed").await;
    site
}

/// The successor of a dead daemon knows that there may be a token, and by which id.
#[tokio::test]
async fn what_a_dead_daemon_asked_for_is_taken_back() {
    let site = died("echo $1 >> revoked").await;
    // As of a Kubernetes token, whose id is chosen before the API is asked.
    sqlx::query("UPDATE join_tokens SET token_id = 'abcdef'")
        .execute(&site.store.writer)
        .await
        .unwrap();
    let look_at = site.open().sweep().await.unwrap();
    assert!(look_at.is_some_and(|at| now() < at), "{look_at:?}");
    assert_eq!(site.states().await, ["asked"], "it may yet be made");
    age(&site).await;
    site.open().sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked"]);
    let revoked = std::fs::read_to_string(site.path("revoked")).unwrap();
    assert_eq!(revoked, "abcdef\nabcdef\n", "at once, and when it is sure");
}

/// The run ends while the issuer works: that there is no token yet does not mean that there will
/// be none.
#[tokio::test]
async fn a_token_that_is_being_made_is_not_taken_for_revoked() {
    let site = Site::new(|dir| scripts(dir, "{description}", 30)).await;
    let mint = format!("echo x > asked; while [ ! -e go ]; do sleep 0.02; done; echo {TOKEN}");
    site.script("mint", &mint);
    site.script("revoke", "echo \"$1\" >> revoked");
    site.run("running").await;
    let issuers = site.open();
    let meanwhile = async {
        appears(&site.path("asked")).await;
        site.run("failed").await;
        assert!(issuers.sweep().await.unwrap().is_some());
        assert_eq!(site.states().await, ["asked"]);
        std::fs::write(site.path("go"), "").unwrap();
    };
    let (issued, ()) = tokio::join!(issuers.issue(request("step 1"), TOKEN_ONLY), meanwhile);
    issued.unwrap();
    assert_eq!(site.states().await, ["live"]);
    assert_eq!(issuers.sweep().await.unwrap(), None);
    assert_eq!(site.states().await, ["revoked"]);
    let revoked = std::fs::read_to_string(site.path("revoked")).unwrap();
    let line = "anneal: machine r1n1, run run-1\n";
    assert_eq!(revoked, format!("{line}{line}"));
}

/// Whatever was noted of a token before it was there, or before its issuer failed, is void then.
#[tokio::test]
async fn news_of_a_token_outlive_what_was_noted_before() {
    let site = Site::scripted("true", "true").await;
    let store = &site.store;
    let cluster = &site.settings.clusters[0];
    let before = JoinToken::new(cluster, request("step 1"), now());
    store.insert_join_token(&before).await.unwrap();
    let mark = async |token: &JoinToken| store.join_token_revoked(token, now()).await.unwrap();
    assert!(mark(&before).await);
    assert_eq!(site.states().await, ["revoked"]);
    store.supersede_join_token(&before.id).await.unwrap();
    let listed = store.join_tokens_to_revoke(now()).await.unwrap();
    assert_eq!(listed.len(), 1, "nobody knows whether it was made");
    let later = now().plus(Duration::from_secs(60));
    store
        .join_token_unrevoked(&before.id, "no route", later, true)
        .await
        .unwrap();
    assert!(mark(&before).await);
    let made = JoinToken {
        minted_at: Some(now()),
        ..before.clone()
    };
    store.join_token_minted(&made, false).await.unwrap();
    let listed = store.join_tokens_to_revoke(now()).await.unwrap();
    assert_eq!((listed[0].tries, listed[0].retry_at), (0, None));
    assert_eq!(site.states().await, ["live"]);
    // A sweep that looked before it was there.
    assert!(!mark(&before).await);
    store.join_token_unsettled(&before.id, later).await.unwrap();
    assert_eq!(site.tokens().await[0].retry_at, None);
    assert!(mark(&made).await);
}

/// A command chooses the id itself: who dies before it is told cannot revoke by it, and says so,
/// but not while the command may still be at work.
#[tokio::test]
async fn an_id_that_nobody_heard_is_told_to_people() {
    let site = died("echo $1 >> revoked").await;
    let alarms = async || {
        let event = Event::new("test.done", "");
        site.recorder.record_durably(event).await.unwrap();
        let told = site.store.events_after(0, 1_000, None, None).await.unwrap();
        let unrevoked = told
            .iter()
            .filter(|row| row.event.kind == kind::JOIN_UNREVOKED);
        unrevoked.count()
    };
    site.open().sweep().await.unwrap();
    assert_eq!((site.states().await, alarms().await), (vec!["asked"], 0));
    age(&site).await;
    site.open().sweep().await.unwrap();
    assert_eq!((site.states().await, alarms().await), (vec!["revoking"], 1));
    let problem = site.tokens().await[0].problem.clone().unwrap();
    let by = "look for anneal: machine r1n1, run run-1";
    assert!(problem.contains(by), "{problem}");
    assert!(!site.path("revoked").exists());
}
