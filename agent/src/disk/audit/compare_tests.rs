use super::*;
use anneal_image::{Facts, PackOptions, pack};

const MIB: u64 = 1 << 20;

fn part(number: u32, label: &str, start: u64, size: u64, mutable: bool) -> Partition {
    Partition {
        number,
        label: Some(label.to_owned()),
        kind: "0fc63daf-8483-4772-8e79-3d69d8477de4".to_owned(),
        uuid: Some(format!("00000000-0000-0000-0000-00000000000{number}")),
        start,
        size,
        mutable,
    }
}

fn table() -> Table {
    Table {
        kind: TableKind::Gpt,
        sector_size: 512,
        partitions: vec![
            part(1, "ROOT", MIB, 2 * MIB, false),
            part(2, "STATE", 4 * MIB, 3 * MIB, true),
        ],
    }
}

/// The regions of an image of 8 MiB with the table above.
fn all() -> Vec<RegionDrift> {
    regions_of(8 * MIB, Some(&table()))
}

fn region<'a>(regions: &'a [RegionDrift], name: &str) -> &'a RegionDrift {
    regions.iter().find(|r| r.name == name).unwrap()
}

#[test]
fn regions_cover_the_image_without_gaps() {
    let all = all();
    let names: Vec<_> = all.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "boot code",
            "partition table",
            "not in a partition",
            "ROOT",
            "not in a partition",
            "STATE",
            "not in a partition",
            "backup partition table"
        ]
    );
    let mut at = 0;
    for region in &all {
        assert_eq!(region.start, at, "{}", region.name);
        at += region.size;
    }
    assert_eq!(at, 8 * MIB);
    let whole = regions_of(MIB, None);
    assert_eq!((whole.len(), whole[0].size), (1, MIB));
}

#[test]
fn an_image_without_a_table_is_one_region() {
    let disk = vec![7_u8; 128 * 1024];
    let mut data = Vec::new();
    let packed = pack(
        &mut &disk[..],
        &mut data,
        &PackOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    let manifest = packed
        .into_manifest(Facts {
            os: "test".to_owned(),
            ..Facts::default()
        })
        .unwrap();
    let all = regions(&manifest);
    assert_eq!((all.len(), all[0].name.as_str()), (1, "disk"));
}

#[test]
fn a_change_in_a_sealed_partition_is_drift_and_elsewhere_is_not() {
    let mut all = all();
    let image = vec![0; MIB as usize];
    let mut disk = image.clone();
    disk[1000] = 1;
    disk[1024] = 1;
    disk[5000] = 1;
    add_bytes(&mut all, 4 * MIB, &image, &disk);
    assert!(!region(&all, "STATE").drifted);
    assert_eq!(region(&all, "STATE").differing, 3 * 512);
    add_bytes(&mut all, 2 * MIB, &image, &disk);
    let root = region(&all, "ROOT");
    assert!(root.drifted && root.exact);
    let first = 2 * MIB + 512;
    assert_eq!(
        root.ranges,
        [
            ByteRange {
                start: first,
                length: 1024
            },
            ByteRange {
                start: 2 * MIB + 4608,
                length: 512
            }
        ]
    );
}

#[test]
fn a_frame_across_a_border_is_judged_by_its_bytes() {
    let mut all = all();
    // ROOT ends at 3 MiB, STATE begins at 4 MiB.
    let frame = 2 * MIB..6 * MIB;
    assert!(must_be_compared(&all, &frame));
    assert!(!must_be_compared(&all, &(5 * MIB..6 * MIB)));
    assert!(!may_be_compared(&all, &(5 * MIB..6 * MIB)));
    assert!(!must_be_compared(&all, &(MIB..2 * MIB)));
    assert!(may_be_compared(&all, &(MIB..2 * MIB)));
    let image = vec![0; 4 * MIB as usize];
    let mut disk = image.clone();
    disk[3 * MIB as usize] = 1;
    add_bytes(&mut all, frame.start, &image, &disk);
    assert!(all.iter().all(|region| !region.drifted));
    disk[0] = 1;
    add_bytes(&mut all, frame.start, &image, &disk);
    assert!(region(&all, "ROOT").drifted);
}

#[test]
fn whole_frames_are_told_as_such_and_ranges_are_bounded() {
    let mut all = all();
    add_whole(&mut all, &(MIB..MIB + 4096));
    let root = region(&all, "ROOT");
    assert!(root.drifted && !root.exact);
    assert_eq!(root.differing, 4096);
    for n in 0..200 {
        let start = MIB + 10_000 * n;
        add_whole(&mut all, &(start..start + 512));
    }
    let root = region(&all, "ROOT");
    assert_eq!(root.ranges.len(), MAX_RANGES);
    assert!(root.ranges_left_out > 0);
}

#[test]
fn tables_may_grow_where_the_image_says_so() {
    let judge = |change: &dyn Fn(&mut Table)| {
        let mut disk = table();
        change(&mut disk);
        let mut all = all();
        judge_table(&mut all, Some(&table()), Some(&disk));
        let region = region(&all, "partition table").clone();
        (region.drifted, region.notes.join("; "))
    };
    assert_eq!(judge(&|_| {}), (false, String::new()));
    let grown = judge(&|t| t.partitions[1].size += 512);
    assert_eq!(
        grown,
        (
            false,
            "partition 2 (STATE) has grown by 512 bytes".to_owned()
        )
    );
    let added = judge(&|t| t.partitions.push(part(3, "DATA", 7 * MIB, 512, false)));
    assert_eq!(added, (false, "partition 3 (DATA) was added".to_owned()));
    for (change, word) in [
        (&|t: &mut Table| t.partitions[1].size -= 512) as &dyn Fn(&mut Table),
        &|t: &mut Table| t.partitions[0].size += 512,
    ]
    .into_iter()
    .zip(["size", "size"])
    {
        let (drifted, notes) = judge(change);
        assert!(drifted && notes.contains(word), "{notes}");
    }
    assert!(judge(&|t| t.partitions[0].start += 512).0);
    assert!(judge(&|t| t.partitions[0].kind = "x".to_owned()).0);
    assert!(judge(&|t| t.partitions[0].uuid = None).0);
    assert!(
        judge(&|t| {
            t.partitions.remove(0);
        })
        .0
    );
    let mut none = all();
    judge_table(&mut none, Some(&table()), None);
    assert!(region(&none, "partition table").drifted);
}
