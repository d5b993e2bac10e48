//! What the metadata service knows of a machine without a template: EC2's tree of names. Pure.

use std::collections::BTreeMap;

use crate::machine::Machine;

/// A name in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A value.
    Value(String),
    /// Names below it.
    Names(BTreeMap<String, Entry>),
    /// Keys: EC2 lists them as `0=name`.
    Keys(Vec<String>),
}

impl Entry {
    /// What is at a path below; `None` when nothing is.
    pub(super) fn find(&self, path: &str) -> Option<Entry> {
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Some(self.clone());
        }
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        match self {
            Self::Value(_) => None,
            Self::Names(names) => names.get(name)?.find(rest),
            Self::Keys(keys) => {
                let key = keys.get(name.parse::<usize>().ok()?)?;
                let value = Entry::Value(key.clone());
                let names = BTreeMap::from([("openssh-key".to_owned(), value)]);
                Entry::Names(names).find(rest)
            }
        }
    }

    /// As it is answered: a value, or the names, a line each.
    pub(super) fn text(self) -> String {
        match self {
            Self::Value(value) => value,
            Self::Names(names) => {
                let line = |(name, entry): (String, Entry)| match entry {
                    Entry::Value(_) => name,
                    _ => format!("{name}/"),
                };
                names.into_iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Self::Keys(keys) => {
                let lines = keys.iter().enumerate();
                let line = |(n, key): (usize, &String)| {
                    let comment = key.split_ascii_whitespace().nth(2).unwrap_or("key");
                    format!("{n}={}", comment.replace(['/', '='], "_"))
                };
                lines.map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// The tree of a machine in a run. The instance is the run: what is installed anew is another.
pub(super) fn machine_facts(machine: &Machine, run: &str) -> Entry {
    let value = |text: &str| Entry::Value(text.to_owned());
    let mut names = BTreeMap::from([
        ("instance-id".to_owned(), value(run)),
        ("hostname".to_owned(), value(machine.hostname())),
        ("local-hostname".to_owned(), value(machine.hostname())),
    ]);
    let mut macs = BTreeMap::new();
    for (number, nic) in machine.nics.iter().enumerate() {
        let mac = nic.mac.to_string();
        let mut card = BTreeMap::from([
            ("mac".to_owned(), value(&mac)),
            ("device-number".to_owned(), Entry::Value(number.to_string())),
        ]);
        if let Some(address) = nic.address {
            let text = address.ip.to_string();
            card.insert("local-ipv4s".to_owned(), Entry::Value(text));
        }
        macs.insert(mac, Entry::Names(card));
    }
    let interfaces = Entry::Names([("macs".to_owned(), Entry::Names(macs))].into());
    let network = Entry::Names([("interfaces".to_owned(), interfaces)].into());
    names.insert("network".to_owned(), network);
    if let Some(nic) = machine.boot_nic() {
        names.insert("mac".to_owned(), Entry::Value(nic.mac.to_string()));
        if let Some(address) = nic.address {
            let text = address.ip.to_string();
            names.insert("local-ipv4".to_owned(), Entry::Value(text));
        }
    }
    let keys = &machine.config.ssh_keys;
    if !keys.is_empty() {
        names.insert("public-keys".to_owned(), Entry::Keys(keys.clone()));
    }
    if let Some(rack) = &machine.rack {
        let zone = Entry::Names([("availability-zone".to_owned(), value(rack))].into());
        names.insert("placement".to_owned(), zone);
    }
    Entry::Names(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::plan_tests::machine;

    fn at(path: &str) -> Option<String> {
        machine_facts(&machine(), "run-1")
            .find(path)
            .map(Entry::text)
    }

    #[test]
    fn names_are_listed_and_values_told() {
        let top = at("").unwrap();
        assert!(
            top.starts_with("hostname\ninstance-id\nlocal-hostname\n"),
            "{top}"
        );
        assert!(top.contains("\nnetwork/"), "{top}");
        assert_eq!(at("instance-id").as_deref(), Some("run-1"));
        assert_eq!(at("hostname").as_deref(), Some("r1n1"));
        let mac = at("network/interfaces/macs/").unwrap();
        let card = at(&format!("network/interfaces/macs/{mac}")).unwrap();
        assert!(
            card.contains("device-number") && card.contains("mac"),
            "{card}"
        );
        for path in ["nothing", "hostname/x", "network/interfaces/macs/x/mac"] {
            assert_eq!(at(path), None, "{path}");
        }
    }

    #[test]
    fn keys_are_listed_by_number_and_name() {
        let keys = Entry::Keys(vec![
            "ssh-ed25519 AAAA root@a/b".into(),
            "ssh-rsa AAAA".into(),
        ]);
        assert_eq!(keys.clone().text(), "0=root@a_b\n1=key");
        assert_eq!(keys.find("0").unwrap().text(), "openssh-key");
        let key = keys.find("1/openssh-key").unwrap().text();
        assert_eq!(key, "ssh-rsa AAAA");
        assert_eq!(keys.find("2/openssh-key"), None);
    }
}
