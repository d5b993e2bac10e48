//! What a machine would get, asked for over the API: everything, and nothing made for it.

use serde_json::{Value, json};

use crate::daemon::{Daemon, INVENTORY};

const WORKFLOW: &str = r#"name: by-url
steps:
  - uses: netboot
  - name: pointer
    uses: write-file
    with: { partition: { label: OEM }, path: /config.ign, contents: "{{ render('site/pointer.ign') }}" }
  - uses: reboot
"#;

const TEMPLATES: &[(&str, &str)] = &[
    (
        "site/pointer.ign",
        "{{ render('site/pointer.yaml') | ignition('3.3.0') }}",
    ),
    (
        "site/pointer.yaml",
        "merge: [ { source: {{ config_url('site/worker.ign') | tojson }} } ]\nca: [ {{ server.ca_pem | tojson }} ]\n",
    ),
    (
        "site/worker.ign",
        "{{ render('site/worker.yaml') | ignition('3.3.0') }}",
    ),
    (
        "site/worker.yaml",
        "files:\n  - path: /etc/token\n    contents: {{ phone_home.token | tojson }}\n  - path: /opt/up.sh\n    contents: kubectl apply -f x\n",
    ),
    (
        "site/broken.ign",
        "one\n{{ machine.name }} {{ machine.nothing }}\n",
    ),
];

pub async fn site() -> Daemon {
    crate::daemon::own_network();
    let state = tempfile::tempdir().unwrap();
    let workflows = state.path().join("workflows");
    std::fs::create_dir_all(&workflows).unwrap();
    std::fs::write(workflows.join("by-url.yaml"), WORKFLOW).unwrap();
    let broken = WORKFLOW
        .replace("pointer.ign", "broken.ign")
        .replace("by-url", "broken");
    std::fs::write(workflows.join("broken.yaml"), broken).unwrap();
    for (name, text) in TEMPLATES {
        let file = state.path().join("templates").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let workflows_dir = workflows.clone();
    let templates_dir = state.path().join("templates");
    let daemon = Daemon::start_with(state, |settings| {
        settings.workflows_dir = Some(workflows_dir);
        settings.templates_dir = Some(templates_dir);
    })
    .await;
    let applied = daemon
        .post(
            "/api/v1/inventory",
            json!({ "files": [{ "name": "rack", "text": INVENTORY }] }),
        )
        .await;
    assert_eq!(applied.0, 200, "{}", applied.1);
    daemon
}

#[tokio::test]
async fn everything_is_shown_and_nothing_is_made() {
    let daemon = site().await;
    let view = daemon
        .get("/api/v1/machines/r1n1/render?workflow=by-url")
        .await;
    let contents = view["steps"][1]["with"]["contents"].as_str().unwrap();
    let pointer: Value = serde_json::from_str(contents).unwrap();
    let url = pointer["ignition"]["config"]["merge"][0]["source"]
        .as_str()
        .unwrap();
    assert!(url.ends_with("/node/v1/config/(redacted)"), "{url}");
    assert_eq!(view["documents"][0]["template"], "site/worker.ign");
    assert!(
        view["documents"][0]["text"]
            .as_str()
            .unwrap()
            .contains("%28redacted%29")
    );
    let arguments = view["agent_arguments"].as_str().unwrap();
    assert!(
        arguments.contains("panic=30") && arguments.contains("token=(redacted)"),
        "{arguments}"
    );
    let warning = view["warnings"].to_string();
    assert!(
        warning.contains("/opt/up.sh: `kubectl apply` changes the cluster"),
        "{warning}"
    );

    let shown = daemon
        .get("/api/v1/machines/r1n1/render?workflow=by-url&show_secrets=true")
        .await;
    let placeholder = "0".repeat(64);
    assert!(
        shown["documents"][0]["text"]
            .as_str()
            .unwrap()
            .contains(&placeholder)
    );
    assert!(
        !shown["documents"][0]["text"]
            .as_str()
            .unwrap()
            .contains("redacted")
    );
    let tokens = daemon.get("/api/v1/tokens").await;
    assert_eq!(tokens["items"], json!([]), "no token was made");
    let runs = daemon.get("/api/v1/runs").await;
    assert_eq!(runs["items"], json!([]));
    daemon.stop().await;
}

#[tokio::test]
async fn what_stands_for_secrets_is_for_admins() {
    let daemon = site().await;
    let body = json!({ "name": "look", "role": "viewer" });
    let (status, key) = daemon.post("/api/v1/api-keys", body).await;
    assert_eq!(status, 201, "{key}");
    let viewer = daemon.client(key["key"].as_str());
    for (query, expected) in [("", 200), ("&show_secrets=true", 403)] {
        let url = daemon.url(&format!(
            "/api/v1/machines/r1n1/render?workflow=by-url{query}"
        ));
        assert_eq!(
            viewer.get(url).send().await.unwrap().status(),
            expected,
            "{query}"
        );
    }
    // Checking starts programs: not for those who may only look.
    let url = daemon.url("/api/v1/machines/r1n1/validate?workflow=by-url");
    assert_eq!(viewer.get(url).send().await.unwrap().status(), 403);
    let url = daemon.url("/api/v1/machines/r1n1/validate?workflow=by-url&show_secrets=true");
    assert_eq!(daemon.admin.get(url).send().await.unwrap().status(), 400);
    daemon.stop().await;
}

#[tokio::test]
async fn every_check_is_told_with_its_outcome() {
    let daemon = site().await;
    let view = daemon
        .get("/api/v1/machines/r1n1/validate?workflow=by-url")
        .await;
    assert_eq!(view["valid"], true, "{view}");
    let outcomes: Vec<(&str, &str)> = view["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| {
            (
                check["check"].as_str().unwrap(),
                check["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    let ignition = ("ignition-validate", "passed");
    let ran = outcomes
        .iter()
        .filter(|outcome| **outcome == ignition)
        .count();
    assert_eq!(
        ran, 2,
        "install the Debian package `ignition`: {outcomes:?}"
    );
    assert!(outcomes.contains(&("family", "not-run")), "{outcomes:?}");

    let broken = daemon
        .get("/api/v1/machines/r1n1/validate?workflow=broken")
        .await;
    assert_eq!(broken["valid"], false);
    let told = broken["checks"][0]["detail"].as_str().unwrap();
    assert!(
        told.contains("site/broken.ign:2:23: undefined value: `machine.nothing`"),
        "{told}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn all_machines_are_told_to_programs_as_json() {
    let daemon = site().await;
    let context = daemon.state_path().join("state/admin.context.json");
    let render = async |workflow: &str| {
        let mut anneal = std::process::Command::new(env!("CARGO_BIN_EXE_anneal"));
        anneal.env_clear().arg("--context").arg(&context).args([
            "-o",
            "json",
            "render",
            "--all",
            "--workflow",
            workflow,
        ]);
        let output = crate::nodes::run(anneal, "").await;
        let told = String::from_utf8(output.stderr).unwrap();
        let view: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {told}"));
        (output.status.code(), view, told)
    };
    let (code, view, told) = render("by-url").await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(view["failed"], json!([]));
    let names: Vec<_> = view["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|machine| (machine["machine"].as_str(), machine["workflow"].as_str()))
        .collect();
    assert_eq!(
        names,
        ["r1n1", "r1n2"].map(|name| (Some(name), Some("by-url")))
    );
    assert!(view["machines"][0]["bytes"].as_u64().unwrap() > 0, "{view}");
    let (code, view, told) = render("broken").await;
    assert_eq!(code, Some(1));
    assert!(told.contains("2 cannot be rendered"), "{told}");
    assert_eq!(view["machines"], json!([]));
    let error = view["failed"][1]["error"].as_str().unwrap();
    assert!(error.contains("site/broken.ign:2:23"), "{view}");
    daemon.stop().await;
}
