//! `anneal render`, `anneal config` and `anneal cluster` as people run them, against a daemon: what is
//! printed where, and the exit code.

use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::nodes::run;

/// Exit code, standard output, standard error.
type Told = (i32, String, String);

/// Runs `anneal` with a context of this daemon.
async fn anneal(daemon: &Daemon, arguments: &[&str]) -> Told {
    let context = daemon.state_path().join("state/admin.context.json");
    as_whom(&context, arguments, "").await
}

async fn as_whom(context: &std::path::Path, arguments: &[&str], input: &str) -> Told {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anneal"));
    command.env_clear().arg("--context").arg(context);
    command.args(arguments);
    let output = run(command, input).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("it ends by itself");
    (code, text(output.stdout), text(output.stderr))
}

/// What it printed; it must succeed and complain of nothing.
async fn prints(daemon: &Daemon, arguments: &[&str]) -> String {
    let (code, out, err) = anneal(daemon, arguments).await;
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}: {out}");
    out
}

/// Exit code 1, and exactly this on standard error, nothing on standard output.
async fn fails(daemon: &Daemon, arguments: &[&str], expected: &str) {
    let told = anneal(daemon, arguments).await;
    assert_eq!(told, (1, String::new(), expected.to_owned()));
}

#[tokio::test]
async fn render_prints_what_the_machine_would_get() {
    let daemon = crate::render::site().await;
    let by_url = ["render", "r1n1", "--workflow", "by-url"];
    let text = prints(&daemon, &by_url).await;
    let head = "r1n1: workflow by-url, image -, family -\nwarning: r1n1 has no BMC";
    assert!(text.starts_with(head), "{text}");
    for part in [
        "/opt/up.sh: `kubectl apply` changes the cluster",
        "\n1. netboot (netboot)\n",
        "\n2. pointer (write-file)\n   contents:\n     | {\n",
        "\n   path: /config.ign\n",
        "\n3. reboot (reboot)\n",
        "site/worker.ign\n     | {",
        "/node/v1/config/(redacted)",
        "anneal.token=(redacted)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains(&"0".repeat(64)), "{text}");

    // One step only, and for programs.
    let text = prints(&daemon, &[&by_url[..], &["--step", "3"]].concat()).await;
    assert!(text.contains("\n3. reboot (reboot)\n"), "{text}");
    assert!(!text.contains("pointer") && !text.contains("anneal.token"));
    let text = prints(&daemon, &[&by_url[..], &["-o", "json"]].concat()).await;
    let view: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(view["documents"][0]["template"], "site/worker.ign");
    let missing = "error: there is no step 4: workflow by-url has steps 1 to 3\n";
    fails(&daemon, &[&by_url[..], &["--step", "4"]].concat(), missing).await;
    daemon.stop().await;
}

#[tokio::test]
async fn secrets_are_shown_to_admins_that_ask() {
    let daemon = crate::render::site().await;
    let shown = ["render", "r1n1", "--workflow", "by-url", "--show-secrets"];
    let text = prints(&daemon, &shown).await;
    let placeholder = "0".repeat(64);
    for before in ["anneal.token=", "/node/v1/config/", "\"data:,"] {
        let shown = format!("{before}{placeholder}");
        assert!(text.contains(&shown), "{shown}: {text}");
    }
    let tokens = daemon.get("/api/v1/tokens").await;
    assert_eq!(tokens["items"], json!([]), "no token was made");

    let body = json!({ "name": "look", "role": "viewer" });
    let (status, key) = daemon.post("/api/v1/api-keys", body).await;
    assert_eq!(status, 201, "{key}");
    let context = daemon.state_path().join("viewer.json");
    let text = json!({ "server": daemon.tls, "ca": daemon.ca(), "key": key["key"] });
    std::fs::write(&context, text.to_string()).unwrap();
    let (code, out, err) = as_whom(&context, &shown, "").await;
    assert_eq!((code, out.as_str()), (1, ""));
    let hint = "\nhint: use a context whose key has the role; see `anneal api-key list`\n";
    assert!(err.starts_with("error: ") && err.ends_with(hint), "{err}");
    let (code, out, _) = as_whom(&context, &shown[..4], "").await;
    assert!(code == 0 && out.contains("(redacted)"), "{out}");
    daemon.stop().await;
}

#[tokio::test]
async fn render_names_the_machine_and_the_place_of_a_mistake() {
    let daemon = crate::render::site().await;
    let nobody = "error: there is no machine r9n9: register it with `anneal apply`\n";
    fails(&daemon, &["render", "r9n9"], nobody).await;
    let broken = ["render", "r1n1", "--workflow", "broken"];
    let (code, out, err) = anneal(&daemon, &broken).await;
    assert_eq!((code, out.as_str()), (1, ""));
    let place = "site/broken.ign:2:23: undefined value: `machine.nothing`";
    assert!(err.starts_with("error: ") && err.contains(place), "{err}");

    // One machine's mistake is that machine's.
    let all = ["render", "--all", "--workflow", "by-url"];
    let text = prints(&daemon, &all).await;
    assert!(text.contains("\nr1n2 "), "{text}");
    assert!(text.contains("\n2 machines in "), "{text}");
    let all = ["render", "--all", "--workflow", "broken"];
    let (code, out, err) = anneal(&daemon, &all).await;
    assert_eq!(code, 1);
    assert!(out.contains("2 machines in "), "{out}");
    assert!(err.starts_with("error: 2 cannot be rendered:\nr1n1: "));
    assert_eq!(err.matches(place).count(), 2, "{err}");

    let (code, _, err) = anneal(&daemon, &["render"]).await;
    assert_eq!(code, 2, "{err}");
    let (code, _, err) = anneal(&daemon, &["render", "--all", "--show-secrets"]).await;
    assert_eq!(code, 2, "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn config_validate_fails_when_a_check_does() {
    let daemon = crate::render::site().await;
    let validate = ["config", "validate", "r1n1", "--workflow"];
    let text = prints(&daemon, &[&validate[..], &["by-url"]].concat()).await;
    assert!(text.starts_with("r1n1\nCHECK "), "{text}");
    for (check, outcome) in [("ignition-validate", "passed"), ("family", "not run")] {
        let line = text.lines().find(|line| line.starts_with(check));
        let line = line.unwrap_or_else(|| panic!("no {check}; package ignition? {text}"));
        assert!(line.contains(outcome), "{line}");
    }

    // The table is printed all the same, and the exit code tells.
    let two = ["config", "validate", "r1n1", "r1n2", "--workflow", "broken"];
    let (code, out, err) = anneal(&daemon, &two).await;
    assert_eq!((code, err.as_str()), (1, "error: not valid: r1n1, r1n2\n"));
    let place = "site/broken.ign:2:23: undefined value: `machine.nothing`";
    assert_eq!(out.matches("FAILED").count(), 2, "{out}");
    assert!(out.matches(place).count() >= 2, "{out}");
    let text = [&two[..], &["-o", "json"]].concat();
    let (code, out, _) = anneal(&daemon, &text).await;
    assert_eq!(code, 1);
    let views: Vec<Value> = serde_json::Deserializer::from_str(&out)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(views.len() == 2 && views.iter().all(|view| view["valid"] == false));

    let nobody = "error: there is no machine r9n9: register it with `anneal apply`\n";
    fails(&daemon, &["config", "validate", "r9n9"], nobody).await;
    let (code, _, _) = anneal(&daemon, &["config", "validate"]).await;
    assert_eq!(code, 2);
    daemon.stop().await;
}

#[tokio::test]
async fn clusters_are_listed_and_their_secrets_go_in_only() {
    let (daemon, state) = crate::join::site().await;
    let row = |text: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with("metal"));
        let words = line.expect("the cluster").split("  ");
        let words = words.map(str::trim).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let list = prints(&daemon, &["cluster", "list"]).await;
    assert!(list.starts_with("NAME "), "{list}");
    assert!(
        list.contains("\nprod ") && list.contains(" exec "),
        "{list}"
    );
    let before = row(&list);
    assert_eq!(
        before[1..4],
        ["https://10.77.0.5:6443", "talos", "for ever"]
    );
    assert!(before[4].contains("anneal cluster import metal"), "{list}");

    let file = state.join("secrets.yaml");
    let secrets = crate::join::bundle();
    std::fs::write(&file, &secrets).unwrap();
    let path = file.to_str().unwrap();
    let import = ["cluster", "import", "metal", path];
    assert_eq!(
        prints(&daemon, &import).await,
        "secrets of metal imported\n"
    );
    let context = state.join("state/admin.context.json");
    let piped = as_whom(&context, &["cluster", "import", "metal", "-"], &secrets).await;
    assert_eq!(piped.0, 0, "{}", piped.2);
    for format in ["table", "json", "yaml"] {
        let text = prints(&daemon, &["cluster", "show", "metal", "-o", format]).await;
        assert!(text.contains("ready"), "{text}");
        let long = |word: &&str| word.len() > 15 && !word.ends_with(':');
        for secret in secrets.split([' ', '\n', '{', '}', ',']).filter(long) {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let after = row(&prints(&daemon, &["cluster", "list"]).await);
    assert_eq!(after[4], "ready");

    let removed = prints(&daemon, &["cluster", "remove", "metal"]).await;
    assert_eq!(removed, "secrets of metal removed\n");
    let none = "error: no secrets were imported for cluster `metal`\n";
    fails(&daemon, &["cluster", "remove", "metal"], none).await;
    refused(&daemon, &state).await;
    daemon.stop().await;
}

/// Wrong names, wrong files: told, and nothing of the file is repeated.
async fn refused(daemon: &Daemon, state: &std::path::Path) {
    for words in [
        &["cluster", "show", "mtal"][..],
        &["cluster", "show", "MTAL"],
    ] {
        let (code, out, err) = anneal(daemon, words).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains("there is no cluster"), "{err}");
    }
    let missing = "error: reading /nosuch/secrets.yaml: No such file or directory (os error 2)\n";
    let import = ["cluster", "import", "metal", "/nosuch/secrets.yaml"];
    fails(daemon, &import, missing).await;
    let file = state.join("wrong.yaml");
    std::fs::write(&file, "cluster: { secret: hunter2hunter2hunter2 }\n").unwrap();
    let path = file.to_str().unwrap();
    let (code, out, err) = anneal(daemon, &["cluster", "import", "metal", path]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.starts_with("error: ") && !err.contains("hunter2"),
        "{err}"
    );
    // An issuer that needs none takes none.
    let (code, _, err) = anneal(daemon, &["cluster", "import", "prod", path]).await;
    assert!(code == 1 && err.contains("prod"), "{err}");
}
