//! Each check takes what is right, refuses what is wrong, and says when it did not run.

use super::*;

async fn outcome(path: &str, text: &str, os: &str) -> Vec<(String, CheckOutcome, String)> {
    let view = RenderView {
        machine: "r1n1".into(),
        workflow: "w".into(),
        image: Some("talos@1.13.9".into()),
        os: Some(os.into()),
        agent_arguments: None,
        steps: vec![],
        documents: vec![],
        warnings: vec![],
    };
    let checks = reader("here", path, text, &view, Path::new("/nowhere")).await;
    checks
        .into_iter()
        .map(|check| (check.check, check.outcome, check.detail))
        .collect()
}

#[tokio::test]
async fn ignition_is_checked_by_its_own_validator() {
    let config = |version: &str, path: &str| {
        format!(
            r#"{{"ignition":{{"version":"{version}"}},"storage":{{"files":[{{"path":"{path}"}}]}}}}"#
        )
    };
    let told = "install the Debian package `ignition`";
    for (text, expected) in [
        (config("3.3.0", "/a"), CheckOutcome::Passed),
        (config("3.3.0", "a"), CheckOutcome::Failed),
        (config("3.4.0", "/a"), CheckOutcome::NotRun),
        ("{".to_owned(), CheckOutcome::Failed),
    ] {
        let checks = outcome("/config.ign", &text, "flatcar").await;
        assert_eq!(
            (checks.len(), checks[0].1),
            (1, expected),
            "{told}: {checks:?}"
        );
    }
}

#[tokio::test]
async fn cloud_config_is_checked_by_cloud_init() {
    let good = outcome("/user-data", "#cloud-config\nhostname: r1n1\n", "debian").await;
    assert!(
        good.iter()
            .all(|(_, outcome, _)| *outcome == CheckOutcome::Passed),
        "install the Debian package `cloud-init`: {good:?}"
    );
    let bad = outcome("/user-data", "#cloud-config\nhostname: [1]\n", "debian").await;
    assert_eq!(bad[1].1, CheckOutcome::Failed, "{bad:?}");
    assert!(bad[1].2.contains("hostname"), "{bad:?}");
}

#[tokio::test]
async fn network_configurations_hold_together() {
    let good = "version: 2\nethernets:\n  lan0: { match: { macaddress: \"52:54:00:aa:00:01\" } }\nbonds:\n  bond0: { interfaces: [ lan0 ] }\nvlans:\n  v20: { id: 20, link: bond0 }\n";
    for (text, expected) in [
        (good.to_owned(), None),
        (
            format!("network:\n  {}", good.trim_end().replace('\n', "\n  ")),
            None,
        ),
        (
            good.replace("link: bond0", "link: bond1"),
            Some("`v20` refers to `bond1`, which is not described"),
        ),
        (
            good.replace("bonds:", "bond:"),
            Some("unknown section `bond`, did you mean `bonds`?"),
        ),
        (
            good.replace("version: 2", "version: 3"),
            Some("expected `version: 1` or `version: 2`"),
        ),
        ("version: 1\nconfig: []\n".to_owned(), None),
    ] {
        let checks = outcome("/network-config", &text, "debian").await;
        match expected {
            None => assert_eq!(checks[0].1, CheckOutcome::Passed, "{text} {checks:?}"),
            Some(told) => assert_eq!(checks[0].2, told, "{text}"),
        }
    }
}

#[tokio::test]
async fn what_nobody_checks_is_not_passed() {
    let talos = "version: v1alpha1\nmachine: {}\n";
    let checks = outcome("/config.yaml", talos, "talos").await;
    assert_eq!(checks[0].1, CheckOutcome::Passed);
    assert_eq!(checks[2].1, CheckOutcome::NotRun);
    assert!(checks[2].2.contains("talos-v1.13.json"), "{checks:?}");
    for path in ["/motd", "/user-data.toml"] {
        let checks = outcome(path, "x", "own").await;
        assert_eq!(checks[0].1, CheckOutcome::NotRun, "{path}");
        assert!(!checks[0].2.is_empty());
    }
    let broken = outcome("/a.yaml", "a: 1\n---\nb: [\n", "own").await;
    assert_eq!(broken[0].1, CheckOutcome::Failed);
    assert!(broken[0].2.starts_with("line "), "{broken:?}");
}
