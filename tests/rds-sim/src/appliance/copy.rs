//! `/file/copy` and `/disk/copy`: they take as long as the data does, and a reboot interrupts them.
//!
//! What is documented (manual, "Files" and CLI reference of `/disk/copy`): `/file/copy X name=Y`, whole
//! trees too; `/disk/copy src= dst= src-offset= dst-offset= size=`, where `dst` "must be at least as large
//! as the copied data". All else is a switch `--copy-...`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::clone::{clear_range, copy_range, next_data};
use super::command::{Property, Reply};
use super::core::Appliance;
use super::pool::{HIDDEN, Pool, allocate_range};
use crate::config::{Allocate, CopyExisting, CopyFull, CopyInterrupted, CopyProgress};
use crate::ros::error::Refusal;
use crate::ros::item::{Item, Value};
use crate::ros::number::parse_size;

/// At most so much between two looks at whether there is still power.
const STEP: u64 = 4 << 20;
const NAP: Duration = Duration::from_millis(20);

/// What a `/file/copy` does, in order.
enum Step {
    Directory(PathBuf),
    File { from: PathBuf, to: PathBuf, len: u64 },
}

/// How a copy ended early.
enum Stopped {
    Power,
    Full,
    Io(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(e: io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Stopped::Full,
            _ => Stopped::Io(e),
        }
    }
}

/// A copy under way: its pace, its limits, and the boot that it belongs to.
struct Journey<'a> {
    appliance: &'a Appliance,
    boots: u64,
    started: Instant,
    done: u64,
    /// Bytes that the target's pool had left at the start.
    room: u64,
}

impl Journey<'_> {
    /// Counts `len` bytes, and waits until they may have been copied.
    fn pace(&mut self, len: u64) -> Result<(), Stopped> {
        self.done += len;
        let rate = self.appliance.switches.copy_bytes_per_second;
        loop {
            if self.appliance.boots() != self.boots {
                return Err(Stopped::Power);
            }
            let due = match rate {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64(self.done as f64 / rate as f64),
            };
            match due.checked_sub(self.started.elapsed()) {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(left) => std::thread::sleep(left.min(NAP)),
            }
        }
    }

    fn step(&self) -> u64 {
        match self.appliance.switches.copy_bytes_per_second {
            0 => STEP,
            // Twenty looks a second.
            rate => (rate / 20).clamp(4096, STEP),
        }
    }

    /// Copies a stretch. `grow`: the target is as long as what has arrived.
    fn stretch(
        &mut self,
        (source, from): (&File, u64),
        (target, to): (&File, u64),
        len: u64,
        grow: bool,
    ) -> Result<(), Stopped> {
        let full = self.appliance.switches.allocate == Allocate::Full;
        let mut at = 0;
        while at < len {
            let part = self.step().min(len - at);
            if grow && self.done + part > self.room {
                return Err(Stopped::Full);
            }
            if grow && full {
                allocate_range(target, to + at, part)?;
            } else if grow {
                target.set_len(to + at + part)?;
            }
            let end = from + at + part;
            let mut cursor = from + at;
            while cursor < end {
                let (start, stop) = next_data(source, cursor, end)?.unwrap_or((end, end));
                if !grow {
                    // Over old data holes have to be written as well.
                    clear_range(target, to + (cursor - from), start - cursor)?;
                }
                copy_range(source, start, target, to + (start - from), stop - start)?;
                cursor = stop;
            }
            at += part;
            self.pace(part)?;
        }
        Ok(())
    }
}

impl Appliance {
    fn journey(&self, room: u64) -> Journey<'_> {
        Journey { appliance: self, boots: self.boots(), started: Instant::now(), done: 0, room }
    }

    fn full(&self) -> Refusal {
        Refusal::Guess(self.switches.full_pool_text.clone())
    }

    fn stopped(&self, why: Stopped) -> Refusal {
        match why {
            // Nobody hears it: the appliance is off.
            Stopped::Power => Refusal::Guess("failure: interrupted".into()),
            Stopped::Full => self.full(),
            Stopped::Io(e) => Refusal::Guess(format!("failure: {e}")),
        }
    }

    pub(super) fn copy_files(
        &self,
        targets: &[String],
        properties: &[Property],
    ) -> Result<Reply, Refusal> {
        let [target] = targets else { return Err(Refusal::NoSuchItem) };
        let mut name = None;
        for p in properties {
            match p.name.as_str() {
                "name" => name = Some(p.value.as_str()),
                other => return Err(Refusal::UnknownParameter(other.to_owned())),
            }
        }
        let name = name.ok_or_else(|| Refusal::InvalidValue("name".into()))?;
        let source = self.file_named(target)?;
        let (_, from) = self.pools.resolve(&source).ok_or(Refusal::NoSuchItem)?;
        let (steps, room) = self.change(|| {
            let (pool, to) = self.place_for(name)?;
            if to.starts_with(&from) {
                return Err(Refusal::CannotDo);
            }
            let mut steps = Vec::new();
            plan(&from, &to, &mut steps).map_err(|e| self.stopped(Stopped::Io(e)))?;
            let total: u64 =
                steps.iter().map(|s| if let Step::File { len, .. } = s { *len } else { 0 }).sum();
            let room = self.pools.free(pool);
            if total > room && self.switches.copy_full == CopyFull::UpFront {
                return Err(self.full());
            }
            Ok((steps, room))
        })?;
        let mut journey = self.journey(room);
        for step in &steps {
            self.pools.changed();
            match step {
                Step::Directory(dir) => {
                    fs::create_dir_all(dir).map_err(|e| self.stopped(e.into()))?;
                }
                Step::File { from, to, len } => self.copy_file(&mut journey, from, to, *len)?,
            }
        }
        self.pools.changed();
        Ok(Reply::Done)
    }

    /// Where a new file may be made.
    pub(super) fn place_for(&self, name: &str) -> Result<(&Pool, PathBuf), Refusal> {
        let bad_path = || Refusal::Guess(self.switches.bad_path_text.clone());
        let (pool, to) = self.pools.resolve(name).ok_or_else(bad_path)?;
        if !to.parent().is_some_and(Path::is_dir) || to == pool.dir() {
            return Err(bad_path());
        }
        self.writable(&to)?;
        if to.exists() && (self.switches.copy_existing == CopyExisting::Refuse || to.is_dir()) {
            return Err(Refusal::Guess(self.switches.existing_file_text.clone()));
        }
        Ok((pool, to))
    }

    fn copy_file(
        &self,
        journey: &mut Journey<'_>,
        from: &Path,
        to: &Path,
        len: u64,
    ) -> Result<(), Refusal> {
        let io = |e: io::Error| self.stopped(e.into());
        let progress = self.switches.copy_progress;
        let file_name = to.file_name().unwrap_or_default().to_string_lossy();
        let hidden = to.with_file_name(format!("{HIDDEN}copy-{file_name}"));
        let at = if progress == CopyProgress::Hidden { hidden.as_path() } else { to };
        let source = File::open(from).map_err(io)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let target = options.open(at).map_err(io)?;
        if progress == CopyProgress::FullSize {
            target.set_len(len).map_err(io)?;
        }
        let result = match progress {
            CopyProgress::FullSize if journey.done + len > journey.room => Err(Stopped::Full),
            CopyProgress::FullSize => journey.stretch((&source, 0), (&target, 0), len, false),
            _ => journey.stretch((&source, 0), (&target, 0), len, true),
        };
        match result {
            Ok(()) if at != to => fs::rename(at, to).map_err(io),
            Ok(()) => Ok(()),
            Err(why) => {
                if at != to || self.switches.copy_interrupted == CopyInterrupted::Remove {
                    let _ = fs::remove_file(at);
                }
                Err(self.stopped(why))
            }
        }
    }

    pub(super) fn copy_disk(&self, properties: &[Property]) -> Result<Reply, Refusal> {
        let (mut src, mut dst, mut offsets, mut size) = (None, None, [0, 0], None);
        for p in properties {
            let number = || {
                parse_size(&p.value, p.origin).ok_or_else(|| Refusal::InvalidValue(p.name.clone()))
            };
            match p.name.as_str() {
                "src" => src = Some(p.value.as_str()),
                "dst" => dst = Some(p.value.as_str()),
                "src-offset" => offsets[0] = number()?,
                "dst-offset" => offsets[1] = number()?,
                "size" => size = Some(number()?),
                other => return Err(Refusal::UnknownParameter(other.to_owned())),
            }
        }
        let no_match = |name: &str| Refusal::NoMatch(name.to_owned());
        let from = src.and_then(|s| self.storage(s)).ok_or_else(|| no_match("src"))?;
        let io = |e: io::Error| self.stopped(e.into());
        let source = File::open(&from).map_err(io)?;
        let len = source.metadata().map_err(io)?.len();
        let size = size.unwrap_or_else(|| len.saturating_sub(offsets[0]));
        if offsets[0].checked_add(size).is_none_or(|end| end > len) {
            return Err(Refusal::InvalidValue("size".into()));
        }
        let dst = dst.ok_or_else(|| no_match("dst"))?;
        let (to, grow, room) = match self.storage(dst) {
            Some(to) => (to, false, u64::MAX),
            None if self.switches.disk_copy_creates && dst.contains('/') => {
                let (pool, to) = self.place_for(dst)?;
                (to, true, self.pools.free(pool))
            }
            None => return Err(no_match("dst")),
        };
        self.writable(&to)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(grow).truncate(false);
        let target = options.open(&to).map_err(io)?;
        let have = target.metadata().map_err(io)?.len();
        if !grow && offsets[1].checked_add(size).is_none_or(|end| end > have) {
            return Err(Refusal::Guess(self.switches.copy_too_small_text.clone()));
        }
        let mut journey = self.journey(room);
        let result = journey.stretch((&source, offsets[0]), (&target, offsets[1]), size, grow);
        if result.is_err() && grow && self.switches.copy_interrupted == CopyInterrupted::Remove {
            let _ = fs::remove_file(&to);
        }
        result.map_err(|why| self.stopped(why))?;
        let mut item = Item::default();
        // The manual's form of the last progress line.
        item.push("status", Value::Text(format!("{size} / {size} (100%)")));
        Ok(Reply::Items(vec![item]))
    }

    /// The file of a disk in a slot, or the file of that path. Whole pools are not copied here.
    fn storage(&self, name: &str) -> Option<PathBuf> {
        let of_disk = self.id_of(name).and_then(|id| self.image(id)).map(|(path, _)| path);
        let of_path = || self.pools.resolve(name).map(|(_, path)| path);
        of_disk.or_else(of_path).filter(|path| path.is_file())
    }
}

fn plan(from: &Path, to: &Path, steps: &mut Vec<Step>) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    if !meta.is_dir() {
        steps.push(Step::File { from: from.to_owned(), to: to.to_owned(), len: meta.len() });
        return Ok(());
    }
    steps.push(Step::Directory(to.to_owned()));
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        plan(&entry.path(), &to.join(entry.file_name()), steps)?;
    }
    Ok(())
}
