use super::super::loops::{FILE_SYSTEMS, Loop, known, labelled, script};
use super::*;

fn change(add: &str, remove: &str) -> Change {
    Change::new(&[add.to_owned()], &[remove.to_owned()]).unwrap()
}

/// As ostree has it: `loader` is a link to the folder in use.
const PLANT: &str = "mount \"$1\" /mnt; cd /mnt; mkdir -p loader.0/entries; ln -s loader.0 loader
    printf 'title a\\noptions quiet rw\\nlinux /v\\n' >loader/entries/a+3.conf
    printf 'title b\\noptions rw x=1\\n' >loader/entries/b.conf
    printf 'options rw' >loader/entries/readme.txt
    chmod 600 loader/entries/a+3.conf; chown 12:34 loader/entries/a+3.conf
    setfattr -n security.selinux -v boot_t loader/entries/a+3.conf";

#[test]
fn edits_the_entries_of_a_real_file_system_once() {
    for (kind, mib, package, mkfs) in &FILE_SYSTEMS[1..] {
        let disk = Loop::new(&format!("anneal-bls-{kind}"), *mib, package, mkfs);
        let node = disk.partition();
        script(&node, PLANT);
        let edit = || edit_on(&disk.chosen(), &labelled("L"), &change("x=1", "quiet"));
        let first = edit().unwrap();
        assert_eq!(first.changed, ["a+3.conf"], "{kind}");
        assert_eq!(first.unchanged, ["b.conf"]);
        let again = edit().unwrap();
        assert_eq!((again.changed.len(), again.unchanged.len()), (0, 2));
        let seen = script(
            &node,
            "mount -o ro \"$1\" /mnt; cd /mnt/loader/entries; cat *; ls; stat -c %a:%u:%g a*; getfattr --only-values -n security.selinux a*",
        );
        let expected = "title a\noptions rw x=1\nlinux /v\ntitle b\noptions rw x=1\noptions rwa+3.conf\nb.conf\nreadme.txt\n600:12:34\nboot_t";
        assert_eq!(seen, expected, "{kind}");
    }
}

/// systemd-boot's entries are on vfat, which has no links, owners or attributes.
#[test]
fn edits_the_entries_of_vfat_once() {
    for (kind, mib, package, mkfs) in known().filter(|(kind, ..)| *kind == "vfat") {
        let disk = Loop::new("anneal-bls-vfat", mib, package, mkfs);
        let node = disk.partition();
        script(
            &node,
            "mount \"$1\" /mnt; mkdir -p /mnt/loader/entries; cd /mnt/loader/entries
            printf 'title a\\noptions quiet rw\\n' >a+3.conf; printf 'options x=1\\n' >b.conf",
        );
        let edit = || edit_on(&disk.chosen(), &labelled("L"), &change("x=1", "quiet"));
        let first = edit().unwrap();
        assert_eq!(
            (first.changed, first.unchanged.len()),
            (vec!["a+3.conf".into()], 1)
        );
        assert_eq!(edit().unwrap().changed.len(), 0, "{kind}");
        let seen = script(
            &node,
            "mount -o ro \"$1\" /mnt; cd /mnt/loader/entries; cat *; ls; cd /; umount /mnt; fsck.vfat -n \"$1\" >&2",
        );
        let expected = "title a\noptions rw x=1\noptions x=1\na+3.conf\nb.conf";
        assert_eq!(seen, expected);
    }
}

#[test]
fn refuses_a_partition_without_entries() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-bls-none", mib, package, mkfs);
    let failure = edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap_err();
    assert_eq!(failure.code, FailureCode::FileSystem);
    assert!(
        failure.message.contains("has no boot loader entries"),
        "{failure:?}"
    );
    script(
        &disk.partition(),
        "mount \"$1\" /mnt; mkdir -p /mnt/loader/entries; echo options c b >/mnt/loader/entries/x.conf",
    );
    let done = edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap();
    assert_eq!(done.changed, ["x.conf"]);
    let seen = script(
        &disk.partition(),
        "mount \"$1\" /mnt; cat /mnt/loader/entries/*",
    );
    assert_eq!(seen, "options c a");
}

/// What Debian's cloud image has at `boot/grub/grub.cfg`, and beside it.
const PLANT_GRUB: &str = "mount \"$1\" /mnt; cd /mnt; mkdir -p boot/grub; cd boot/grub
    printf 'menuentry x {\\n\\tlinux\\t/boot/vmlinuz root=PARTUUID=1 ro quiet \\n\\tinitrd\\t/boot/i\\n}\\n' >grub.cfg
    chmod 444 grub.cfg; chown 12:34 grub.cfg; echo untouched >grubenv
    setfattr -n security.selinux -v boot_t grub.cfg";

#[test]
fn edits_grubs_own_configuration_once_wherever_it_is() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-grub", mib, package, mkfs);
    let node = disk.partition();
    script(&node, PLANT_GRUB);
    // Found on the disk, not told.
    let partition = search(&disk.chosen()).unwrap();
    assert_eq!(partition.number, Some(1));
    let edit = || edit_on(&disk.chosen(), &partition, &change("x=$1", "quiet"));
    let first = edit().unwrap();
    assert_eq!(first.changed, ["grub.cfg"]);
    let again = edit().unwrap();
    assert_eq!(
        (again.changed.len(), again.unchanged),
        (0, vec!["grub.cfg".to_owned()])
    );
    let seen = script(
        &node,
        "mount -o ro \"$1\" /mnt; cd /mnt/boot/grub; cat grub.cfg grubenv; ls -A; stat -c %a:%u:%g grub.cfg; getfattr --only-values -n security.selinux grub.cfg; cd /; umount /mnt; e2fsck -fn \"$1\" >&2",
    );
    let expected = "menuentry x {\n\tlinux\t/boot/vmlinuz root=PARTUUID=1 ro 'x=$1' \n\tinitrd\t/boot/i\n}\nuntouched\ngrub.cfg\ngrubenv\n444:12:34\nboot_t";
    assert_eq!(seen, expected);
    // Entries come before it.
    script(
        &node,
        "mount \"$1\" /mnt; mkdir -p /mnt/loader/entries; echo options b >/mnt/loader/entries/x.conf",
    );
    assert_eq!(edit().unwrap().changed, ["x.conf"]);
}

#[test]
fn grubs_configuration_without_a_kernel_or_behind_a_link_is_left_alone() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-grub-odd", mib, package, mkfs);
    let node = disk.partition();
    let failure = search(&disk.chosen()).unwrap_err();
    assert!(
        failure.message.contains("no grub.cfg (grub or boot/grub)"),
        "{failure:?}"
    );
    let edit = || edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap_err();
    script(
        &node,
        "mount \"$1\" /mnt; mkdir -p /mnt/grub /mnt/elsewhere; echo blscfg >/mnt/grub/grub.cfg",
    );
    let failure = edit();
    assert_eq!(failure.code, FailureCode::FileSystem);
    assert!(
        failure.message.contains("cannot edit grub/grub.cfg on")
            && failure.message.contains("no line that begins with linux"),
        "{failure:?}"
    );
    script(
        &node,
        "mount \"$1\" /mnt; printf 'linux /v \\377\\n' >/mnt/grub/grub.cfg",
    );
    let failure = edit();
    assert!(
        failure.message.contains("it is not UTF-8: write"),
        "{failure:?}"
    );
    // Neither out of the partition nor inside it.
    for target in ["/etc/passwd", "/elsewhere/grub.cfg"] {
        script(
            &node,
            &format!(
                "mount \"$1\" /mnt; echo linux /v >/mnt/elsewhere/grub.cfg; ln -sf {target} /mnt/grub/grub.cfg"
            ),
        );
        let failure = edit();
        assert!(failure.message.contains("symbolic links"), "{failure:?}");
        let seen = script(
            &node,
            "mount -o ro \"$1\" /mnt; cat /mnt/elsewhere/grub.cfg; ls -A /mnt/grub; readlink /mnt/grub/grub.cfg",
        );
        assert_eq!(seen, format!("linux /v\ngrub.cfg\n{target}"));
    }
}

#[test]
fn several_partitions_with_something_to_edit_are_told() {
    let partition = |number| PartitionRef {
        number: Some(number),
        ..PartitionRef::default()
    };
    let one = (partition(1), "vda1 (boot/grub)".to_owned());
    let other = (partition(16), "vda16 (grub)".to_owned());
    assert_eq!(
        only("vda", vec![other.clone()], &["vda1: x".to_owned()]).unwrap(),
        partition(16)
    );
    let failure = only("vda", vec![one, other], &[]).unwrap_err();
    assert_eq!(failure.code, FailureCode::Partition);
    assert!(
        failure.message.contains("vda1 (boot/grub), vda16 (grub)"),
        "{failure:?}"
    );
}

#[test]
fn nothing_found_says_what_was_not_looked_into() {
    let failure = only("vda", Vec::new(), &[]).unwrap_err();
    assert!(!failure.retryable && !failure.message.contains("not looked into"));
    let why = "cannot mount ext4 on vda2: damaged".to_owned();
    let failure = only("vda", Vec::new(), &[why]).unwrap_err();
    assert_eq!(failure.code, FailureCode::FileSystem);
    assert!(
        failure.retryable
            && failure
                .message
                .starts_with("vda has no boot loader entries")
            && failure
                .message
                .ends_with("; not looked into: cannot mount ext4 on vda2: damaged"),
        "{failure:?}"
    );
}

#[test]
fn of_two_partitions_the_one_with_something_to_edit_is_found() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::two("anneal-two", (mib, package, mkfs), (mib, package, mkfs));
    let first = disk.partition();
    let second = disk.located("second");
    script(&second, PLANT_GRUB);
    assert_eq!(search(&disk.chosen()).unwrap().number, Some(2));
    script(&first, PLANT_GRUB);
    let failure = search(&disk.chosen()).unwrap_err();
    assert_eq!(failure.code, FailureCode::Partition, "{failure:?}");
    // A flag of the first one's superblock that no kernel knows.
    script(
        &first,
        "printf '\\377' | dd of=\"$1\" bs=1 seek=1123 conv=notrunc,fsync status=none",
    );
    assert_eq!(search(&disk.chosen()).unwrap().number, Some(2));
    script(&second, "mount \"$1\" /mnt; rm -r /mnt/boot");
    let failure = search(&disk.chosen()).unwrap_err();
    assert!(
        failure.retryable
            && failure
                .message
                .contains("; not looked into: cannot mount ext4 on"),
        "{failure:?}"
    );
}

/// As a power cut leaves it: with a journal to replay, and a deleted file that was still open.
#[test]
fn looking_writes_nothing() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-look", mib, package, mkfs);
    let node = disk.partition();
    script(
        &node,
        "copy=$(mktemp); mount \"$1\" /mnt; mkdir -p /mnt/boot/grub; echo linux /v >/mnt/boot/grub/grub.cfg
        exec 3>/mnt/open; echo x >&3; rm /mnt/open; sync; dd if=\"$1\" of=\"$copy\" bs=1M status=none
        exec 3>&-; umount /mnt; dd if=\"$copy\" of=\"$1\" bs=1M conv=fsync status=none; rm \"$copy\"
        dumpe2fs -h \"$1\" 2>&1 | grep -q needs_recovery",
    );
    let before = std::fs::read(&disk.file).unwrap();
    assert_eq!(search(&disk.chosen()).unwrap().number, Some(1));
    assert!(std::fs::read(&disk.file).unwrap() == before, "written");
    // And the partition can be written afterwards.
    let done = edit_on(&disk.chosen(), &labelled("L"), &change("a", "b")).unwrap();
    assert_eq!(done.changed, ["grub.cfg"]);
}

/// Looking leaves it such that it can be edited.
#[test]
fn every_file_system_can_be_looked_into() {
    for (kind, mib, package, mkfs) in known() {
        let disk = Loop::new(&format!("anneal-look-{kind}"), mib, package, mkfs);
        script(
            &disk.partition(),
            "mount \"$1\" /mnt; mkdir -p /mnt/grub; echo linux /v >/mnt/grub/grub.cfg",
        );
        let partition = search(&disk.chosen()).unwrap();
        assert_eq!(partition.number, Some(1), "{kind}");
        let done = edit_on(&disk.chosen(), &partition, &change("a", "b")).unwrap();
        assert_eq!(done.changed, ["grub.cfg"], "{kind}");
    }
}

#[test]
fn an_order_that_is_no_longer_wanted_writes_nothing() {
    let (_, mib, package, mkfs) = FILE_SYSTEMS[1];
    let disk = Loop::new("anneal-grub-late", mib, package, mkfs);
    script(&disk.partition(), PLANT_GRUB);
    let chosen = disk.chosen();
    let options = Options {
        allow_loop: chosen.loops.clone(),
        ..Options::default()
    };
    let action = AgentAction::BootArguments {
        disk: chosen.selector.clone(),
        partition: None,
        add: vec!["a".to_owned()],
        remove: Vec::new(),
    };
    let before = std::fs::read(&disk.file).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let failure = edit(&options, &action, &cancel).unwrap_err();
    assert_eq!(failure.code, FailureCode::Abandoned);
    assert!(std::fs::read(&disk.file).unwrap() == before);
    let done = edit(&options, &action, &CancellationToken::new()).unwrap();
    assert_eq!(done.changed, ["grub.cfg"]);
}
