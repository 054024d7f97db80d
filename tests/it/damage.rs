use crate::fleet::{Dice, Fleet, History};

fn closed_segment(fleet: &Fleet) -> std::path::PathBuf {
    let entries = std::fs::read_dir(fleet.dir("d/log")).expect("lists").map(|entry| entry.expect("entry").path());
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let closed = entries.filter(|path| name(path).starts_with("seg-") && !name(path).contains("open"));
    closed.min().expect("a closed segment")
}

#[test]
fn p10_one_flipped_bit_in_a_closed_segment_is_named_by_verify_and_at_start() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(2, 12_000, 3_000).lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    datastore.terminate();
    let segment = closed_segment(&fleet);
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    let good = std::fs::read(&segment).expect("reads");
    let mut dice = Dice::new(9);
    for _ in 0..12 {
        let at = dice.below(good.len() as u64) as usize;
        let mut bad = good.clone();
        bad[at] ^= 1 << dice.below(8);
        std::fs::write(&segment, &bad).expect("writes");
        let output = fleet.run("d", &["verify", "--json"]);
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(3), "byte {at}: {report}{}", String::from_utf8_lossy(&output.stderr));
        assert!(report.contains(&name) && report.contains("\"offset\":"), "byte {at}: {report}");
        let start = std::process::Command::new(env!("CARGO_BIN_EXE_gravwell_datastore"))
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(fleet.dir("d"))
            .output()
            .expect("runs");
        let errors = String::from_utf8_lossy(&start.stderr).into_owned();
        assert_eq!(start.status.code(), Some(3), "byte {at}: {errors}");
        assert!(errors.contains(&name) && errors.contains("byte"), "byte {at}: {errors}");
        assert_eq!(std::fs::read(&segment).expect("reads"), bad, "nothing is cut or mended");
    }
    std::fs::write(&segment, &good).expect("writes");
    let _datastore = fleet.datastore();
    fleet.ok("d", &["verify"]);
}

#[test]
fn p10_a_running_datastore_notices_damage_when_asked() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let _datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(2, 12_000, 3_000).lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    let segment = closed_segment(&fleet);
    let mut bytes = std::fs::read(&segment).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    let file = std::fs::File::options().write(true).open(&segment).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("writes in place");
    let output = fleet.run("d", &["verify"]);
    assert_eq!(output.status.code(), Some(3));
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains(segment.file_name().unwrap().to_str().unwrap()), "{report}");
}
