//! What a system cannot have is refused, with the machine and the reason.

use super::{Case, Family, NETWORKS, case};

fn refusal(case: &Case, template: &str) -> String {
    case.render(template).unwrap_err().to_string()
}

#[test]
fn kernel_arguments_that_grub_would_change() {
    for family in ["debian", "ubuntu"] {
        for argument in ["a=\"b\"", "a='b'", "a\\b"] {
            let mut case = case(Family::of(family), "worker", "dhcp");
            case.machine.config.kernel_args = vec!["quiet".to_owned(), argument.to_owned()];
            let told = refusal(&case, &format!("{family}/grub-default.cfg"));
            assert!(told.contains("machine r1n1: `kernel_args`: GRUB"), "{told}");
        }
    }
}

#[test]
fn a_wildcard_registry_needs_a_mirror() {
    let mut case = case(Family::of("debian"), "", NETWORKS[1]);
    case.machine.config.registries[0].host = "*".to_owned();
    case.machine.config.registries[0].mirrors.clear();
    let told = refusal(&case, "debian/user-data");
    assert!(told.contains("registry `*` without `mirrors`"), "{told}");
}
