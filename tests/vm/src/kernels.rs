//! Kernels, downloaded and unpacked (never installed) below `kernels/SERIES/`:
//!
//! ```text
//! vmlinuz                the image
//! release                what `uname -r` says in the guest
//! lib/modules/RELEASE/   modules, uncompressed, with depmod's indices
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::choose::{self, Image, Series};
use crate::command;
use crate::layout::Layout;

/// A kernel that is ready to boot.
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) directory: PathBuf,
}

impl Kernel {
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    fn load(directory: PathBuf) -> Option<Self> {
        let release = fs::read_to_string(directory.join("release")).ok()?.trim().to_owned();
        Some(Self { release, directory })
    }
}

/// The kernel of that series, from the cache or else from apt (or from `debs`, where apt
/// does not have it). A lock lets the second of two callers wait for the first's download.
pub(crate) fn prepare(layout: &Layout, series: Series, debs: &[PathBuf]) -> Result<Kernel> {
    let directory = layout.kernel(series);
    if let Some(kernel) = Kernel::load(directory.clone()) {
        return Ok(kernel);
    }
    let kernels = layout.kernels();
    fs::create_dir_all(&kernels).with_context(|| format!("creating {}", kernels.display()))?;
    let lock_path = kernels.join("lock");
    let lock =
        File::create(&lock_path).with_context(|| format!("creating {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
    if let Some(kernel) = Kernel::load(directory.clone()) {
        return Ok(kernel);
    }

    let work = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(&kernels)
        .with_context(|| format!("creating a directory in {}", kernels.display()))?;
    let downloads = work.path().join("debs");
    fs::create_dir(&downloads).with_context(|| format!("creating {}", downloads.display()))?;
    let debs = if debs.is_empty() { download(series, &downloads)? } else { debs.to_vec() };
    let tree = work.path().join("tree");
    for deb in &debs {
        eprintln!("rds-vm: unpacking {}", deb.display());
        command::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    }
    let ready = work.path().join("ready");
    assemble(&tree, &ready)?;
    fs::rename(&ready, &directory)
        .with_context(|| format!("moving {} to {}", ready.display(), directory.display()))?;
    Kernel::load(directory.clone()).with_context(|| {
        format!("{} lacks its file `release` right after unpacking", directory.display())
    })
}

fn download(series: Series, into: &Path) -> Result<Vec<PathBuf>> {
    let image = find_in_apt(series)?;
    eprintln!("rds-vm: downloading {}", image.packages.join(" "));
    // As root, apt would drop to a user that cannot write here, and warn that it does not.
    command::run(
        Command::new("apt-get")
            .current_dir(into)
            .args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"])
            .args(&image.packages),
    )?;
    let mut debs = Vec::new();
    for entry in fs::read_dir(into).with_context(|| format!("reading {}", into.display()))? {
        debs.push(entry.with_context(|| format!("reading {}", into.display()))?.path());
    }
    Ok(debs)
}

fn find_in_apt(series: Series) -> Result<Image> {
    if let Some(image) = search_apt(series)? {
        return Ok(image);
    }
    // A bare container has no package lists, an old one has lists without this series.
    let refreshed = command::run(Command::new("apt-get").args(["-q", "update"]));
    if let Some(image) = search_apt(series)? {
        return Ok(image);
    }
    let refresh = match refreshed {
        Ok(()) => "after `apt-get update`".to_owned(),
        Err(error) => format!("and the lists could not be refreshed ({error:#})"),
    };
    bail!(
        "apt offers no kernel image for series {series}, {refresh}. Add a package source that has it \
         (Debian 12 and its security updates have 6.1 and 6.12; its backports and Debian 13 have 6.12), or \
         fetch the .deb elsewhere and run: rds-vm prepare --kernel {series} --deb FILE"
    )
}

fn search_apt(series: Series) -> Result<Option<Image>> {
    let listing = command::output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        "^linux-image-.*(-amd64-unsigned|-generic)$",
    ]))?;
    let names = listing.lines().filter_map(|line| line.split_whitespace().next());
    Ok(choose::newest(names, series))
}

/// Puts image and modules of an unpacked package into the layout above.
fn assemble(tree: &Path, ready: &Path) -> Result<()> {
    // Debian 13 ships modules below /usr/lib.
    let parent = ["lib/modules", "usr/lib/modules"]
        .map(|path| tree.join(path))
        .into_iter()
        .find(|p| p.is_dir());
    let parent = parent.with_context(|| {
        format!("no lib/modules in {}: is it a kernel package?", tree.display())
    })?;
    let modules = only_entry(&parent)?;
    let release = modules.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    drop_unused_modules(&modules.join("kernel"))?;
    decompress(&modules)?;

    let home = ready.join("lib/modules");
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    rename(&modules, &home.join(&release))?;
    rename(&tree.join("boot").join(format!("vmlinuz-{release}")), &ready.join("vmlinuz"))?;
    // kmod's module directory is /lib/modules or /usr/lib/modules, as its builder chose.
    fs::create_dir(ready.join("usr"))
        .and_then(|()| std::os::unix::fs::symlink("../lib", ready.join("usr/lib")))
        .with_context(|| format!("linking usr/lib in {}", ready.display()))?;
    command::run(Command::new("depmod").arg("-b").arg(ready).arg(&release))?;
    fs::write(ready.join("release"), &release)
        .with_context(|| format!("writing release in {}", ready.display()))
}

/// Hardware that no guest has. Without its modules, udev's cold plug has less to look
/// through and nothing to load, and the unpacked kernel takes a third of the space.
fn drop_unused_modules(kernel: &Path) -> Result<()> {
    const UNUSED: [&str; 14] = [
        "sound",
        "drivers/gpu",
        "drivers/media",
        "drivers/staging",
        "drivers/iio",
        "drivers/infiniband",
        "drivers/input",
        "drivers/isdn",
        "drivers/usb",
        "drivers/net/ethernet",
        "drivers/net/wireless",
        "drivers/net/usb",
        "drivers/hwmon",
        "drivers/i2c",
    ];
    for path in UNUSED.map(|name| kernel.join(name)) {
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Decompresses all modules: busybox's insmod cannot, and an emulated processor is slow at it.
fn decompress(modules: &Path) -> Result<()> {
    for (extension, program) in [
        ("xz", ["xz", "-dq", "--"]),
        ("zst", ["zstd", "-dq", "--rm"]),
        ("gz", ["gzip", "-dq", "--"]),
    ] {
        let mut files = Vec::new();
        collect(modules, extension, &mut files)?;
        if files.is_empty() {
            continue;
        }
        let workers = thread::available_parallelism().map_or(2, usize::from);
        let shares: Vec<&[PathBuf]> = files.chunks(files.len().div_ceil(workers)).collect();
        thread::scope(|scope| {
            let running: Vec<_> = shares
                .into_iter()
                .map(|share| scope.spawn(move || decompress_share(program, share)))
                .collect();
            running.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| bail!("a thread that ran {} panicked", program[0]))
            })
        })?;
    }
    Ok(())
}

fn decompress_share(program: [&str; 3], files: &[PathBuf]) -> Result<()> {
    // Well below the kernel's limit on the length of a command line.
    files
        .chunks(500)
        .try_for_each(|some| command::run(Command::new(program[0]).args(&program[1..]).args(some)))
}

fn collect(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        let path = entry.path();
        // file_type does not follow links: `build` and `source` point out of the tree.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    match entries.as_slice() {
        [one] => Ok(one.clone()),
        others => bail!("{} holds {} kernels, expected one", directory.display(), others.len()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}
