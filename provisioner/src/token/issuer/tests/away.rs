//! What keeps one token from being taken back, and what that means for the others.

use super::*;

/// Another token each time: `abcde1.…`, `abcde2.…`
const COUNTED: &str = "echo x >> minted; echo abcde$(wc -l < minted).0123456789abcdef";

/// Ids of the tokens that `revoke` was asked for, in order.
fn asked(site: &Site) -> Vec<String> {
    let text = std::fs::read_to_string(site.path("asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Makes all pauses end.
async fn due(site: &Site) {
    sqlx::query("UPDATE join_tokens SET retry_at = 1")
        .execute(&site.store.writer)
        .await
        .unwrap();
}

async fn unrevoked(site: &Site) -> usize {
    let event = Event::new("test.done", "");
    site.recorder.record_durably(event).await.unwrap();
    let told = site.store.events_after(0, 1_000, None, None).await.unwrap();
    let of_kind = told
        .iter()
        .filter(|row| row.event.kind == kind::JOIN_UNREVOKED);
    of_kind.count()
}

#[tokio::test]
async fn one_that_is_refused_does_not_keep_the_others() {
    let revoke = "echo $1 >> asked; [ $1 != abcde1 ] || { echo not mine >&2; exit 1; }";
    let site = Site::scripted(COUNTED, revoke).await;
    let issuers = site.open();
    for why in ["step 1", "step 2"] {
        issuers.issue(request(why), TOKEN_ONLY).await.unwrap();
    }
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked", "revoking"], "newest first");
    assert_eq!(asked(&site), ["abcde1", "abcde2"]);
    assert_eq!(unrevoked(&site).await, 1);
}

/// A command that does not end stands for all tokens of its cluster, but not for ever the same one.
#[tokio::test]
async fn one_that_hangs_lets_the_others_go_first_the_next_time() {
    let site = Site::new(|dir| scripts(dir, "{token_id}", 15)).await;
    site.script("mint", COUNTED);
    let hangs = "echo $1 >> asked; [ $1 != abcde1 ] || sleep 600";
    site.script("revoke", hangs);
    let issuers = site.open();
    for why in ["step 1", "step 2", "step 3"] {
        issuers.issue(request(why), TOKEN_ONLY).await.unwrap();
    }
    issuers.sweep().await.unwrap();
    assert_eq!(asked(&site), ["abcde1"], "the others would fare alike");
    assert_eq!(site.states().await, ["revoking"; 3]);
    let tries: Vec<u32> = site.tokens().await.iter().map(|t| t.tries).collect();
    assert_eq!(tries, [0, 0, 1], "newest first");
    due(&site).await;
    issuers.sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked", "revoked", "revoking"]);
    assert_eq!(asked(&site), ["abcde1", "abcde2", "abcde3", "abcde1"]);
    assert_eq!(unrevoked(&site).await, 3, "once a token");
}

/// The same holds for tokens that may yet be made: each would wait as long as the first.
#[tokio::test]
async fn one_that_hangs_stands_also_for_those_that_may_yet_be_made() {
    let site = Site::new(|dir| scripts(dir, "{token_id}", 15)).await;
    site.script("mint", COUNTED);
    site.script("revoke", "echo $1 >> asked; sleep 600");
    let issuers = site.open();
    for why in ["step 1", "step 2", "step 3"] {
        issuers.issue(request(why), TOKEN_ONLY).await.unwrap();
    }
    // As of Kubernetes tokens whose API did not answer: their ids are known, and no more.
    sqlx::query("UPDATE join_tokens SET minted_at = NULL, digest = NULL")
        .execute(&site.store.writer)
        .await
        .unwrap();
    let look_at = issuers.sweep().await.unwrap();
    assert!(look_at.is_some_and(|at| now() < at), "{look_at:?}");
    assert_eq!(asked(&site), ["abcde1"], "the others would fare alike");
    assert_eq!(site.states().await, ["asked"; 3]);
}

/// What ended by itself is only tidied up.
#[tokio::test]
async fn nobody_is_told_of_an_expired_token() {
    let site = Site::scripted(COUNTED, "echo $1 >> asked; exit 1").await;
    let issuers = site.open();
    issuers.issue(request("step 1"), TOKEN_ONLY).await.unwrap();
    sqlx::query("UPDATE join_tokens SET expires_at = $1")
        .bind(now().0 - 1_000)
        .execute(&site.store.writer)
        .await
        .unwrap();
    issuers.sweep().await.unwrap();
    assert_eq!(asked(&site), ["abcde1"]);
    assert_eq!(unrevoked(&site).await, 0);
}

/// Another issuer than the one that made a token knows nothing of it.
#[tokio::test]
async fn a_token_is_taken_back_by_the_issuer_that_made_it() {
    let mut site = Site::scripted(COUNTED, "echo $1 >> asked").await;
    site.open()
        .issue(request("step 1"), TOKEN_ONLY)
        .await
        .unwrap();
    let token = site.path("token");
    std::fs::write(&token, "a-token-of-sixteen-or-more\n").unwrap();
    let exec = site.settings.clusters[0].issuer.clone();
    site.settings.clusters[0].issuer = IssuerSettings::Static { token };
    site.open().sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoking"]);
    let problem = site.tokens().await[0].problem.clone().unwrap();
    assert!(
        problem.contains("`exec`") && problem.contains("`static`"),
        "{problem}"
    );
    assert_eq!(unrevoked(&site).await, 1);
    assert_eq!(asked(&site), Vec::<String>::new());
    site.settings.clusters[0].issuer = exec;
    due(&site).await;
    site.open().sweep().await.unwrap();
    assert_eq!(site.states().await, ["revoked"]);
    // Nor does a command learn the id of what the API made.
    sqlx::query("UPDATE join_tokens SET issuer = 'kubernetes', revoked_at = NULL")
        .execute(&site.store.writer)
        .await
        .unwrap();
    due(&site).await;
    site.open().sweep().await.unwrap();
    assert_eq!(asked(&site), ["abcde1"], "only once");
}
