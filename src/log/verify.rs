//! Verifies a whole log without changing it: every checksum, every sequence, the chain within and between files, the
//! head file. Lists every damaged place instead of stopping at the first.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::cursor::{find_frame, zeros_from};
use super::directory::{HEAD, SegmentName};
use super::error::{Damage, IoFailure};
use super::format::{FOOTER_BYTES, FileHeader, HEADER_BYTES, HeadSlot};
use super::head::read_head;
use super::reader::LogReader;
use super::segment::{Scan, check_footer, hex, read_footer, read_header, scan_frames};
use super::trim;
use gravwell_env::fs::{File, Fs};
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::{Chain, Seq};

/// Result of the verification of a whole log.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Every damaged place, by file and offset.
    pub damages: Vec<Damage>,
    /// Remarks that are not damage, such as a torn tail that opening would truncate.
    pub notes: Vec<String>,
    /// Number of segments checked.
    pub segments: usize,
    /// Number of records checked.
    pub records: u64,
    /// Number of bytes checked.
    pub bytes: u64,
    /// Last sequence found.
    pub head: Seq,
    /// Chain value at `head`.
    pub chain: Chain,
}

impl VerifyReport {
    /// Returns whether there is no damage.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.damages.is_empty()
    }
}

struct Target {
    name: SegmentName,
    file: Arc<dyn File>,
    length: u64,
    /// End of the durable bytes, for an open segment that is being written.
    durable_end: Option<u64>,
}

struct Verifier<'a> {
    report: VerifyReport,
    head: Option<HeadSlot>,
    next: Seq,
    chain: Option<Chain>,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

/// Reports an unreadable file as damage.
fn unreadable(failure: &IoFailure) -> Damage {
    Damage::new(&failure.path, 0, failure.action, "readable", &failure.source)
}

/// Verifies a log that no process has open. `progress` receives (bytes done, total bytes).
pub fn verify(fs: &dyn Fs, dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> VerifyReport {
    let mut report = VerifyReport::default();
    match offline(fs, dir, &mut report) {
        Ok((head, targets)) => run(report, head, &targets, progress),
        Err(failure) => {
            report.damages.push(unreadable(&failure));
            report
        }
    }
}

type Targets = (Option<HeadSlot>, Vec<Target>);

/// Reads the head file and lists the segments to check.
fn offline(fs: &dyn Fs, dir: &Path, report: &mut VerifyReport) -> Result<Targets, IoFailure> {
    let files = fs.list(dir).map_err(IoFailure::at("list", dir.display()))?;
    let mut names: Vec<_> = files.iter().filter_map(|file| SegmentName::parse(file)).collect();
    names.sort_by_key(|name| (name.first, std::cmp::Reverse(name.last.unwrap_or(Seq(u64::MAX)))));
    let head = match read_head(fs, dir) {
        Ok(Ok((slot, torn))) => {
            report.notes.extend(torn.map(|damage| format!("one slot of the head file is torn: {damage}")));
            Some(slot)
        }
        Ok(Err(damage)) => {
            report.damages.push(damage);
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !names.is_empty() {
                report.damages.push(Damage::new(HEAD, 0, "head file", "present next to segments", "missing"));
            }
            None
        }
        Err(error) => return Err(IoFailure::at("read", HEAD)(error)),
    };
    if let Some(head) = &head
        && let Some(start) = trim::start(fs, dir, head, &mut names)?
    {
        let noted = |name: &SegmentName| format!("{name} is older than the retained records; opening will remove it");
        report.notes.extend(start.leftover.iter().map(noted));
    }
    let mut targets = Vec::new();
    let mut covered_to = None;
    for name in names {
        if name.last.is_some() && name.last <= covered_to {
            report.notes.push(format!("{name} was replaced by a compacted segment; opening will remove it"));
            continue;
        }
        covered_to = name.last.or(covered_to);
        let file = fs.open(&dir.join(name.to_string())).map_err(IoFailure::at("open", name))?;
        let length = file.len().map_err(IoFailure::at("measure", name))?;
        targets.push(Target { name, file, length, durable_end: None });
    }
    Ok((head, targets))
}

impl LogReader {
    /// Verifies the log while it is being written. `progress` receives (bytes done, total bytes).
    ///
    /// # Errors
    /// If the head file cannot be read. Segments that cannot be read are listed as damage.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport, IoFailure> {
        let view = self.view();
        let mut report = VerifyReport::default();
        let head = match read_head(&*self.shared().fs, &self.shared().dir).map_err(IoFailure::at("read", HEAD)) {
            Ok(Ok((slot, _))) => Some(slot).filter(|slot| slot.seq <= view.tip.seq),
            Ok(Err(damage)) => {
                report.damages.push(damage);
                None
            }
            Err(failure) => return self.damage().checked(Err(failure), IoFailure::is_damage),
        };
        let targets = view.segments.iter().map(|segment| {
            let durable_end = segment.footer.is_none().then_some(view.tip.end);
            let length = segment.file_bytes().unwrap_or(view.tip.end);
            let last = segment.footer.map(|footer| footer.last);
            let name = SegmentName { first: segment.first(), last };
            Target { name, file: Arc::clone(&segment.file), length, durable_end }
        });
        let report = run(report, head, &targets.collect::<Vec<_>>(), progress);
        report.damages.iter().for_each(|damage| self.damage().note(damage));
        Ok(report)
    }
}

fn run(
    report: VerifyReport,
    head: Option<HeadSlot>,
    targets: &[Target],
    progress: &mut dyn FnMut(u64, u64),
) -> VerifyReport {
    let total = targets.iter().map(|target| target.length).sum();
    let (next, chain) =
        targets.first().map_or((Seq(1), CHAIN_START), |target| trim::begin(&*target.file, head.as_ref()));
    let mut verifier = Verifier { report, head, next, chain: Some(chain), total, progress };
    for target in targets {
        if let Err(error) = verifier.segment(target) {
            verifier.damage(unreadable(&IoFailure::at("read", target.name)(error)));
        }
        verifier.report.bytes += target.length;
        verifier.report.segments += 1;
        (verifier.progress)(verifier.report.bytes, verifier.total);
    }
    if let Some(head) = &verifier.head
        && head.seq.next() > verifier.next
    {
        let file = targets.last().map_or(HEAD.to_owned(), |target| target.name.to_string());
        let (expected, found) = (format!("records up to {}", head.seq), verifier.next.0 - 1);
        verifier.report.damages.push(Damage::new(file, 0, "end of the log", expected, found));
    }
    verifier.report.head = Seq(verifier.next.0 - 1);
    verifier.report.chain = verifier.chain.unwrap_or(CHAIN_START);
    verifier.report
}

impl Verifier<'_> {
    fn damage(&mut self, damage: Damage) {
        self.report.damages.push(damage);
    }

    fn segment(&mut self, target: &Target) -> io::Result<()> {
        let name = target.name.to_string();
        if target.name.first != self.next {
            let what = format!("segment that starts with {}", self.next);
            self.damage(Damage::new(&name, 0, what, "present", "missing"));
            self.chain = None;
        }
        let header = match read_header(&*target.file)? {
            Ok(header) => header,
            Err(error) => {
                self.damage(Damage::decode(&name, 0, &error));
                // This header is sufficient to continue with the records.
                FileHeader {
                    first: target.name.first,
                    chain_before: self.chain.unwrap_or_default(),
                    ..FileHeader::default()
                }
            }
        };
        self.check_header(&name, target, &header);
        let footer_at = match (target.name.last, target.durable_end) {
            (Some(_), _) => target.length.saturating_sub(FOOTER_BYTES as u64).max(HEADER_BYTES as u64),
            (None, Some(end)) => end,
            (None, None) => target.length,
        };
        let damages_before = self.report.damages.len();
        let scan = self.frames(&name, target, &header, footer_at)?;
        let whole = self.report.damages.len() == damages_before;
        match target.name.last {
            Some(last) => {
                self.footer(target, &header, footer_at, &scan, whole)?;
                self.next = last.next();
            }
            None => {
                self.next = scan.last.next();
                self.chain = scan.stopped.is_none().then_some(scan.chain).or(self.chain);
            }
        }
        Ok(())
    }

    fn check_header(&mut self, name: &str, target: &Target, header: &FileHeader) {
        let mut wrong = |what: &str, expected: String, found: String| {
            self.report.damages.push(Damage::new(name, 0, format_args!("file header: {what}"), expected, found));
        };
        if header.first != target.name.first {
            wrong("first sequence", target.name.first.to_string(), header.first.to_string());
        }
        if let Some(head) = &self.head
            && header.log_id != head.log_id
            && header.log_id != gravwell_model::LogId::default()
        {
            wrong("log id", head.log_id.to_string(), header.log_id.to_string());
        }
        if let Some(chain) = self.chain
            && header.chain_before != chain
        {
            wrong("chain before", hex(&chain), hex(&header.chain_before));
        }
    }

    /// Checks all frames; after a damaged place it continues with the next intact frame.
    fn frames(&mut self, name: &str, target: &Target, header: &FileHeader, end: u64) -> io::Result<Scan> {
        let mut scan = Scan::new(header);
        let (done, total) = (self.report.bytes, self.total);
        let head = self.head.clone();
        let mut wrong_head = None;
        loop {
            let progress = &mut self.progress;
            let mut reported = 0;
            scan = scan_frames(&target.file, header.is_compacted(), true, end, scan, |raw| {
                if raw.offset > reported + (8 << 20) {
                    reported = raw.offset;
                    progress(done + raw.offset, total);
                }
                if let Some(head) = head.as_ref().filter(|head| head.seq == raw.header.seq)
                    && !header.is_compacted()
                    && head.chain != raw.header.chain
                {
                    wrong_head = Some((raw.offset, hex(&head.chain), hex(&raw.header.chain)));
                }
            })?;
            let Some(error) = scan.stopped.clone() else { break };
            if self.is_clean_end(name, target, &scan)? {
                scan.stopped = None;
                break;
            }
            self.damage(Damage::decode(name, scan.end, &error));
            let Some((offset, found)) = find_frame(&*target.file, scan.end + 1, end, |h| h.seq > scan.last)? else {
                break;
            };
            // The chain cannot be verified across the gap; it restarts after it.
            scan.stopped = None;
            scan = self.behind_hole(target, scan, offset, found.seq)?;
        }
        if let Some((offset, expected, found)) = wrong_head {
            self.damage(Damage::new(name, offset, "chain named by the head file", expected, found));
        }
        self.report.records += scan.count;
        Ok(scan)
    }

    /// Resumes the scan after the first intact frame that follows a gap.
    fn behind_hole(&self, target: &Target, scan: Scan, offset: u64, seq: Seq) -> io::Result<Scan> {
        let mut cursor = super::cursor::FrameCursor::new(Arc::clone(&target.file), offset, target.length);
        let (chain, end) = match cursor.next()? {
            Ok(Some(raw)) => (raw.header.chain, raw.end()),
            _ => (scan.chain, offset + 1),
        };
        Ok(Scan { last: seq, chain, end, count: scan.count + 1, ..scan })
    }

    /// Returns whether the bytes after the last frame of an open segment are ones that a crash may leave.
    fn is_clean_end(&mut self, name: &str, target: &Target, scan: &Scan) -> io::Result<bool> {
        if target.name.last.is_some() || target.durable_end.is_some() {
            return Ok(false);
        }
        let used = zeros_from(&*target.file, scan.end, target.length)?;
        if used == scan.end {
            return Ok(true);
        }
        let expected = scan.last.next();
        let later = find_frame(&*target.file, scan.end, target.length, |h| h.batch_first() > expected)?;
        let durable = self.head.as_ref().is_some_and(|head| head.seq > scan.last);
        let intact = scan.stopped.as_ref().is_some_and(|error| matches!(error.what, "sequence" | "chain"));
        if later.is_some() || durable || intact {
            return Ok(false);
        }
        let bytes = used - scan.end;
        let offset = scan.end;
        self.report.notes.push(format!("{name} ends with {bytes} bytes of an unfinished write at byte {offset}"));
        Ok(true)
    }

    fn footer(
        &mut self,
        target: &Target,
        header: &FileHeader,
        footer_at: u64,
        scan: &Scan,
        whole: bool,
    ) -> io::Result<()> {
        let name = &target.name.to_string();
        match read_footer(&*target.file, footer_at)? {
            Ok(footer) => {
                if whole {
                    check_footer(name, header, &footer, scan).into_iter().for_each(|damage| self.damage(damage));
                }
                self.chain = Some(footer.chain_after);
            }
            Err(error) => {
                self.damage(Damage::decode(name, footer_at, &error));
                self.chain = (!header.is_compacted()).then_some(scan.chain);
            }
        }
        Ok(())
    }
}
