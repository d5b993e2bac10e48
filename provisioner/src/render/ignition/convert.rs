//! From our YAML to Ignition's JSON.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::contents;
use super::input::{
    Authority, Compress, Directory, Document, File, Group, KernelArgs, Link, Owner, Reference,
    Unit, User,
};
use super::spec::Spec;
use crate::yaml::{self, Location, Spanned, YamlError};

/// Kinds of systemd units.
const UNITS: &[&str] = &[
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

/// Converts a document; `file` names it in errors.
///
/// # Errors
/// The first key or value that is wrong, or that `spec` does not have, with line and column.
pub fn convert(text: &str, file: &str, spec: Spec) -> Result<String, YamlError> {
    let document: Document = yaml::parse(text, file)?;
    let writer = Writer { file, spec };
    let json = writer.document(&document)?;
    let mut out = serde_json::to_string_pretty(&json)
        .map_err(|error| YamlError::at(file, Location::UNKNOWN, error.to_string()))?;
    out.push('\n');
    Ok(out)
}

struct Writer<'a> {
    file: &'a str,
    spec: Spec,
}

type Checked<T> = Result<T, YamlError>;

/// An object without what is absent or empty.
fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let there =
        |(_, value): &(&str, Value)| !value.is_null() && *value != json!([]) && *value != json!({});
    let named = |(key, value): (&str, Value)| (key.to_owned(), value);
    Value::Object(
        entries
            .into_iter()
            .filter(there)
            .map(named)
            .collect::<Map<_, _>>(),
    )
}

impl Writer<'_> {
    fn refuse<T>(&self, place: Location, message: impl Into<String>) -> Checked<T> {
        Err(YamlError::at(self.file, place, message))
    }

    fn check<T>(&self, place: Location, checked: Result<T, String>) -> Checked<T> {
        checked.or_else(|told| self.refuse(place, told))
    }

    fn needs(&self, place: Location, what: &str, since: Spec) -> Checked<()> {
        if self.spec >= since {
            return Ok(());
        }
        let told = format!(
            "spec {} has no {what}: expected a spec from {since} on",
            self.spec
        );
        self.refuse(place, told)
    }

    fn document(&self, document: &Document) -> Checked<Value> {
        self.paths(document)?;
        let config = object([
            (
                "merge",
                self.all(&document.merge, |it, one| it.reference(one))?,
            ),
            (
                "replace",
                self.optional(document.replace.as_ref(), |it, one| it.reference(one))?,
            ),
        ]);
        let own = document.ca.iter().map(|pem| Ok(trusted(&pem.value)));
        let others = document.certificate_authorities.iter();
        let authorities = own
            .chain(others.map(|authority| self.authority(authority)))
            .collect::<Checked<Vec<_>>>()?;
        let authorities = Value::from(authorities);
        let tls = object([("certificateAuthorities", authorities)]);
        Ok(object([
            (
                "ignition",
                object([
                    ("config", config),
                    ("security", object([("tls", tls)])),
                    ("version", json!(self.spec.to_string())),
                ]),
            ),
            (
                "kernelArguments",
                self.kernel_args(document.kernel_args.as_ref())?,
            ),
            ("passwd", self.passwd(document)?),
            ("storage", self.storage(document)?),
            (
                "systemd",
                object([(
                    "units",
                    self.all(&document.units, |it, unit| it.unit(unit))?,
                )]),
            ),
        ]))
    }

    fn all<T>(&self, items: &[T], one: impl Fn(&Self, &T) -> Checked<Value>) -> Checked<Value> {
        items
            .iter()
            .map(|item| one(self, item))
            .collect::<Checked<Vec<_>>>()
            .map(Value::from)
    }

    fn optional<T>(
        &self,
        item: Option<&T>,
        one: impl Fn(&Self, &T) -> Checked<Value>,
    ) -> Checked<Value> {
        item.map_or(Ok(Value::Null), |item| one(self, item))
    }

    /// Every path once and absolute: Ignition refuses the rest at first boot.
    fn paths(&self, document: &Document) -> Checked<()> {
        let files = document.files.iter().map(|file| &file.path);
        let directories = document.directories.iter().map(|directory| &directory.path);
        let links = document.links.iter().map(|link| &link.path);
        let mut seen = HashMap::new();
        for path in files.chain(directories).chain(links) {
            let text = path.value.as_str();
            let valid = text.starts_with('/')
                && !text.chars().any(char::is_control)
                && !text.split('/').any(|part| part == "..");
            if !valid {
                return self.refuse(path.referenced, "expected an absolute path without `..`");
            }
            self.once(&mut seen, path, "path")?;
        }
        let mut units = HashMap::new();
        for unit in &document.units {
            self.once(&mut units, &unit.name, "unit")?;
        }
        let mut users = HashMap::new();
        for user in &document.users {
            self.once(&mut users, &user.name, "user")?;
        }
        Ok(())
    }

    fn once<'v>(
        &self,
        seen: &mut HashMap<&'v str, Location>,
        name: &'v Spanned<String>,
        what: &str,
    ) -> Checked<()> {
        match seen.insert(&name.value, name.referenced) {
            None => Ok(()),
            Some(first) => {
                let told = format!(
                    "{what} {} is given twice, first in line {}",
                    name.value,
                    first.line()
                );
                self.refuse(name.referenced, told)
            }
        }
    }

    fn storage(&self, document: &Document) -> Checked<Value> {
        let mut storage = match &document.storage {
            None => Map::new(),
            Some(storage) => {
                if let Some((word, since)) = storage.value.newer_than(self.spec) {
                    self.needs(storage.referenced, &format!("`{word}`"), since)?;
                }
                let value = serde_json::to_value(&storage.value).map_err(|e| e.to_string());
                match self.check(storage.referenced, value)? {
                    Value::Object(storage) => storage,
                    _ => Map::new(),
                }
            }
        };
        for (key, value) in [
            (
                "directories",
                self.all(&document.directories, |it, one| it.directory(one))?,
            ),
            ("files", self.all(&document.files, |it, one| it.file(one))?),
            ("links", self.all(&document.links, |it, one| it.link(one))?),
        ] {
            if value != json!([]) {
                storage.insert(key.to_owned(), value);
            }
        }
        Ok(Value::Object(storage))
    }

    fn file(&self, file: &File) -> Checked<Value> {
        let contents = match (&file.contents, &file.source) {
            (Some(text), None) => {
                if let Some(hash) = &file.hash {
                    let told = "a digest is for contents by URL: expected `source`, or no `hash`";
                    return self.refuse(hash.referenced, told);
                }
                let inline = contents::inline(text, file.compress);
                object([
                    ("compression", json!(inline.compression)),
                    ("source", json!(inline.url)),
                ])
            }
            (None, Some(source)) => {
                let compression = (file.compress == Some(Compress::Gzip)).then_some("gzip");
                object([
                    ("compression", json!(compression)),
                    ("source", self.source(source, file.hash.as_ref())?),
                    ("verification", self.verification(file.hash.as_ref())?),
                ])
            }
            _ => {
                let told = "expected either `contents` or `source`";
                return self.refuse(file.path.referenced, told);
            }
        };
        Ok(object([
            ("contents", contents),
            ("group", owner(file.group.as_ref())),
            ("mode", self.mode(file.mode.as_ref())?),
            ("overwrite", json!(file.overwrite)),
            ("path", json!(file.path.value)),
            ("user", owner(file.user.as_ref())),
        ]))
    }

    fn source(&self, source: &Spanned<String>, hash: Option<&Spanned<String>>) -> Checked<Value> {
        self.check(source.referenced, contents::source(&source.value))?;
        if hash.is_none() && contents::needs_hash(&source.value) {
            let told =
                "what comes without TLS can be changed on its way: expected `hash` too, or https";
            return self.refuse(source.referenced, told);
        }
        Ok(json!(source.value))
    }

    fn verification(&self, hash: Option<&Spanned<String>>) -> Checked<Value> {
        let Some(hash) = hash else {
            return Ok(Value::Null);
        };
        self.check(hash.referenced, contents::hash(&hash.value, self.spec))?;
        Ok(json!({ "hash": hash.value }))
    }

    /// Permission bits, which Ignition wants as a decimal number.
    fn mode(&self, mode: Option<&Spanned<String>>) -> Checked<Value> {
        let Some(mode) = mode else {
            return Ok(Value::Null);
        };
        let digits = mode.value.strip_prefix("0o").unwrap_or(&mode.value);
        let bits = u32::from_str_radix(digits, 8)
            .ok()
            .filter(|bits| *bits <= 0o7777);
        let Some(bits) = bits.filter(|_| (3..=5).contains(&digits.len())) else {
            let told = "not permission bits: expected octal digits such as \"0644\"";
            return self.refuse(mode.referenced, told);
        };
        if bits > 0o777 {
            self.needs(
                mode.referenced,
                "setuid, setgid and sticky bits",
                Spec::V3_4,
            )?;
        }
        Ok(json!(bits))
    }

    fn directory(&self, directory: &Directory) -> Checked<Value> {
        Ok(object([
            ("group", owner(directory.group.as_ref())),
            ("mode", self.mode(directory.mode.as_ref())?),
            ("overwrite", json!(directory.overwrite)),
            ("path", json!(directory.path.value)),
            ("user", owner(directory.user.as_ref())),
        ]))
    }

    fn link(&self, link: &Link) -> Checked<Value> {
        if link.target.value.is_empty() {
            return self.refuse(
                link.target.referenced,
                "expected the path that the link leads to",
            );
        }
        Ok(object([
            ("group", owner(link.group.as_ref())),
            ("hard", json!(link.hard)),
            ("overwrite", json!(link.overwrite)),
            ("path", json!(link.path.value)),
            ("target", json!(link.target.value)),
            ("user", owner(link.user.as_ref())),
        ]))
    }

    fn unit(&self, unit: &Unit) -> Checked<Value> {
        let kind = unit.name.value.rsplit_once('.').map(|(_, kind)| kind);
        if !kind.is_some_and(|kind| UNITS.contains(&kind)) || unit.name.value.contains('/') {
            let told = format!(
                "not the name of a unit: expected one that ends with .{}",
                UNITS.join(", .")
            );
            return self.refuse(unit.name.referenced, told);
        }
        if let (Some(enabled), Some(contents)) = (&unit.enabled, &unit.contents)
            && enabled.value
            && !contents.lines().any(|line| line.trim() == "[Install]")
        {
            let told = "the unit would not be started, since its contents have no [Install] section: \
                        expected `WantedBy=` in one, or no `enabled`";
            return self.refuse(enabled.referenced, told);
        }
        let dropins = self.all(&unit.dropins, |it, dropin| {
            if !dropin.name.value.ends_with(".conf") || dropin.name.value.contains('/') {
                let told = "not the name of a drop-in: expected one that ends with .conf";
                return it.refuse(dropin.name.referenced, told);
            }
            Ok(json!({ "contents": dropin.contents, "name": dropin.name.value }))
        })?;
        Ok(object([
            ("contents", json!(unit.contents)),
            ("dropins", dropins),
            (
                "enabled",
                json!(unit.enabled.as_ref().map(|enabled| enabled.value)),
            ),
            ("mask", json!(unit.mask)),
            ("name", json!(unit.name.value)),
        ]))
    }

    fn passwd(&self, document: &Document) -> Checked<Value> {
        Ok(object([
            (
                "groups",
                self.all(&document.groups, |it, group| it.group(group))?,
            ),
            (
                "users",
                self.all(&document.users, |it, user| it.user(user))?,
            ),
        ]))
    }

    fn group(&self, group: &Group) -> Checked<Value> {
        self.account(&group.name)?;
        Ok(object([
            ("gid", json!(group.gid)),
            ("name", json!(group.name.value)),
            ("system", json!(group.system)),
        ]))
    }

    fn user(&self, user: &User) -> Checked<Value> {
        self.account(&user.name)?;
        if let Some(hash) = &user.password_hash
            && !hash.value.starts_with('$')
        {
            let told =
                "a password is never written in clear: expected its hash, as `mkpasswd` gives it";
            return self.refuse(hash.referenced, told);
        }
        let hash = user.password_hash.as_ref().map(|hash| &hash.value);
        let keys = self.all(&user.ssh_keys, |it, key| {
            match key.value.trim().is_empty() || key.value.trim().contains('\n') {
                true => it.refuse(key.referenced, "expected one public SSH key"),
                false => Ok(json!(key.value.trim())),
            }
        })?;
        Ok(object([
            ("groups", json!(user.groups)),
            ("homeDir", json!(user.home_dir)),
            ("name", json!(user.name.value)),
            ("noCreateHome", json!(user.no_create_home)),
            ("passwordHash", json!(hash)),
            ("shell", json!(user.shell)),
            ("sshAuthorizedKeys", keys),
            ("system", json!(user.system)),
            ("uid", json!(user.uid)),
        ]))
    }

    fn account(&self, name: &Spanned<String>) -> Checked<()> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let valid = (1..=32).contains(&name.value.len())
            && name.value.bytes().all(plain)
            && !name.value.starts_with('-');
        match valid {
            true => Ok(()),
            false => self.refuse(name.referenced, "not the name of a user or group"),
        }
    }

    fn kernel_args(&self, args: Option<&Spanned<KernelArgs>>) -> Checked<Value> {
        let Some(args) = args else {
            return Ok(Value::Null);
        };
        let list = |args: &[Spanned<String>]| {
            self.all(args, |it, arg| {
                match arg.value.is_empty() || arg.value.chars().any(char::is_control) {
                    true => it.refuse(arg.referenced, "expected a kernel argument"),
                    false => Ok(json!(arg.value)),
                }
            })
        };
        let value = object([
            ("shouldExist", list(&args.value.should_exist)?),
            ("shouldNotExist", list(&args.value.should_not_exist)?),
        ]);
        if value != json!({}) {
            self.needs(args.referenced, "kernel arguments", Spec::V3_3)?;
        }
        Ok(value)
    }

    fn reference(&self, reference: &Reference) -> Checked<Value> {
        let hash = reference.hash.as_ref();
        Ok(object([
            ("source", self.source(&reference.source, hash)?),
            ("verification", self.verification(hash)?),
        ]))
    }

    fn authority(&self, authority: &Authority) -> Checked<Value> {
        let hash = authority.hash.as_ref();
        match (&authority.contents, &authority.source) {
            (Some(text), None) if hash.is_none() => Ok(trusted(&text.value)),
            (None, Some(source)) => Ok(object([
                ("source", self.source(source, hash)?),
                ("verification", self.verification(hash)?),
            ])),
            (text, source) => {
                let place = text.as_ref().or(source.as_ref());
                let place = place.map_or(Location::UNKNOWN, |text| text.referenced);
                self.refuse(
                    place,
                    "expected either `contents`, or `source` and perhaps `hash`",
                )
            }
        }
    }
}

/// An authority in the document. Compressed ones came with 3.1, so none is.
fn trusted(pem: &str) -> Value {
    json!({ "source": contents::inline(pem, Some(Compress::None)).url })
}

fn owner(owner: Option<&Spanned<Owner>>) -> Value {
    match owner.map(|owner| &owner.value) {
        None => Value::Null,
        Some(Owner::Id(id)) => json!({ "id": id }),
        Some(Owner::Name(name)) => json!({ "name": name }),
    }
}
