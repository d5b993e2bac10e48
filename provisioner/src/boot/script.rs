//! Renders the iPXE script that carries out a [`Target`].
//!
//! Owns: the templates in `ipxe/*.ipxe` (compiled in) and the kernel arguments of the agent that
//! are not first facts. A value that iPXE would read as more than text is refused.

use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use super::{INITRAMFS, KERNEL, Target};
use anneal_protocol::cmdline::Boot;
use anneal_protocol::machine::Mac;

/// Kernel arguments of every agent boot. The last console is `/dev/console`, where the agent
/// writes: the serial port, because that is what BMCs and virtual racks record. A panic restarts
/// the machine, because nobody is there to press a button.
const AGENT_ARGUMENTS: &str = "console=tty0 console=ttyS0,115200 panic=30";

/// Why a script cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A value would change the script instead of standing in it.
    #[error("boot script for {mac}: {what} holds a character that iPXE would act on: {value:?}")]
    Unsafe {
        /// Card that asked.
        mac: Mac,
        /// Which value.
        what: &'static str,
        /// The value; never the token.
        value: String,
    },
    /// The template is wrong; a test renders each of them.
    #[error("boot script for {mac} cannot be rendered")]
    Template {
        /// Card that asked.
        mac: Mac,
        /// What minijinja says.
        #[source]
        source: minijinja::Error,
    },
}

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env
});

/// The agent's kernel arguments.
#[must_use]
pub fn agent_arguments(boot: &Boot) -> String {
    format!("{AGENT_ARGUMENTS} {}", boot.to_cmdline())
}

/// The script for the card `mac`; `base_url` is the boot listener, `http://10.77.0.1:8080`.
///
/// # Errors
/// When a value could not be said in an iPXE script.
pub fn render(mac: Mac, target: &Target, base_url: &str) -> Result<String, ScriptError> {
    check(mac, "the server's address", base_url)?;
    let script_url = format!("{base_url}/boot/script/{}", mac.hyphenated());
    let (template, context) = match target {
        Target::Agent(boot) => {
            // Name by name, so that the error can say which without showing the token.
            check(mac, "the machine's name", &boot.machine)?;
            check(mac, "the run", &boot.run)?;
            check(mac, "the server's URL", &boot.server)?;
            check(mac, "the certificate's digest", &boot.ca_sha256)?;
            if check(mac, "the token", &boot.token).is_err() {
                return Err(ScriptError::Unsafe {
                    mac,
                    what: "the boot token",
                    value: "(redacted)".into(),
                });
            }
            let context = context! {
                machine => &boot.machine,
                run => &boot.run,
                script_url,
                kernel_url => format!("{base_url}/boot/{KERNEL}"),
                initramfs_url => format!("{base_url}/boot/{INITRAMFS}"),
                initramfs => INITRAMFS,
                arguments => agent_arguments(boot),
            };
            (include_str!("../../../ipxe/agent.ipxe"), context)
        }
        Target::Disk { machine } => {
            check(mac, "the machine's name", machine)?;
            (
                include_str!("../../../ipxe/disk.ipxe"),
                context! { machine },
            )
        }
        Target::Unknown => (
            include_str!("../../../ipxe/unknown.ipxe"),
            context! { mac => mac.to_string() },
        ),
    };
    TEMPLATES
        .render_str(template, context)
        // minijinja drops the final line end; iPXE ignores a line without one.
        .map(|text| text.trim_end().to_owned() + "\n")
        .map_err(|source| ScriptError::Template { mac, source })
}

/// iPXE splits commands at blanks, `;`, `&&` and `||`, quotes with `'`, `"` and `\`, expands
/// `${…}`, and ends them at line ends. None of that belongs in a name, a URL or a digest.
fn check(mac: Mac, what: &'static str, value: &str) -> Result<(), ScriptError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/[]%+=,@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(());
    }
    Err(ScriptError::Unsafe {
        mac,
        what,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anneal_protocol::cmdline::Address;

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
    const BASE: &str = "http://10.77.0.1:8080";

    fn boot() -> Boot {
        Boot {
            server: "https://10.77.0.1:8443".into(),
            ca_sha256: "ab".repeat(32),
            token: "cd".repeat(32),
            machine: "r1n1".into(),
            run: "0199aaaa-0000-7000-8000-000000000001".into(),
            time_secs: 1_795_000_000,
            mac: MAC,
            address: Some(Address {
                ip: Ipv4Addr::new(10, 77, 0, 11),
                prefix: 24,
                gateway: None,
            }),
        }
    }

    #[test]
    fn agent_script_hands_over_the_first_facts() {
        let script = render(MAC, &Target::Agent(Box::new(boot())), BASE).unwrap();
        assert!(script.starts_with("#!ipxe\n"), "{script}");
        let kernel = script
            .lines()
            .find(|line| line.starts_with("kernel "))
            .unwrap();
        assert!(
            kernel.contains("http://10.77.0.1:8080/boot/vmlinuz "),
            "{kernel}"
        );
        assert!(kernel.contains(" initrd=initramfs.img "), "{kernel}");
        assert!(kernel.contains(" panic=30 "), "{kernel}");
        assert_eq!(Boot::parse(kernel).unwrap(), boot());
        assert!(script.contains("http://10.77.0.1:8080/boot/initramfs.img"));
        assert!(script.contains("/boot/script/52-54-00-aa-00-01"));
    }

    #[test]
    fn disk_and_unknown_never_mention_a_kernel() {
        let disk = Target::Disk {
            machine: "r1n1".into(),
        };
        for target in [disk, Target::Unknown] {
            let script = render(MAC, &target, BASE).unwrap();
            assert!(script.starts_with("#!ipxe\n"), "{script}");
            assert!(!script.contains("kernel"), "{script}");
            assert!(!script.contains("{{"), "{script}");
        }
    }

    #[test]
    fn refuses_values_that_ipxe_would_act_on() {
        for name in ["a b", "x\nreboot", "${net0/mac}", "a||b", "a;b", "'", ""] {
            let disk = Target::Disk {
                machine: name.into(),
            };
            assert!(render(MAC, &disk, BASE).is_err(), "{name:?}");
            let agent = Boot {
                machine: name.into(),
                ..boot()
            };
            assert!(render(MAC, &Target::Agent(Box::new(agent)), BASE).is_err());
        }
        let secret = Boot {
            token: "se cret".into(),
            ..boot()
        };
        let error = render(MAC, &Target::Agent(Box::new(secret)), BASE).unwrap_err();
        assert!(!error.to_string().contains("cret"), "{error}");
    }
}
