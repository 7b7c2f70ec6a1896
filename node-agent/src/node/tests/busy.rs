//! Every kind of user is found before a volume is unstaged, and named.

use rds_csi_proto::agent::NoticeKind;

use super::*;

async fn refused(host: &Host, what: &str) {
    let refused = host.unstage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains(what), "{what:?} is not told: {refused}");
}

/// A process that has nothing open on the volume, but runs in it and from it.
#[tokio::test(flavor = "multi_thread")]
async fn root_directories_and_programs_are_uses() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    let busybox = host.path("staging/busybox");
    fs::copy("/bin/busybox", &busybox).unwrap();
    let mut program =
        Command::new(&busybox).args(["sleep", "100"]).current_dir("/").spawn().unwrap();
    refused(&host, &format!("pid {} (busybox): program {busybox}", program.id())).await;
    program.kill().unwrap();
    program.wait().unwrap();

    // Of a program elsewhere: only the root is on the volume.
    let mut chroot = Command::new("sh")
        .args(["-c", "exec 9</; exec chroot $0 /busybox sh -c 'read x'", &host.path("staging")])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    refused(&host, "root directory").await;
    chroot.kill().unwrap();
    chroot.wait().unwrap();
    fs::remove_file(&busybox).unwrap();
    host.unstage().await.unwrap();
    assert_eq!(host.sessions.told(), [NoticeKind::UnstageBusy], "once");
}

/// A file that is mapped and closed again.
#[tokio::test(flavor = "multi_thread")]
async fn mappings_are_uses() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    let library = host.path("staging/library");
    let real = run("sh", &["-c", "ldd /bin/ls | sed -n 's/.*libc.so.6 => \\([^ ]*\\).*/\\1/p'"]);
    fs::copy(real, &library).unwrap();
    let mut sleep = Command::new("sleep").arg("100").env("LD_PRELOAD", &library).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    refused(&host, &format!("mapped file {library}")).await;
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    host.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_own_uses_are_found() {
    let host = Host::new();
    host.stage(block()).await.unwrap();
    let device = host.sessions.device().path.to_str().unwrap().to_owned();

    let table = format!("0 2048 linear {device} 0");
    run("dmsetup", &["create", "on-top", "--noudevsync", "--table", &table]);
    refused(&host, "device on top of it: /dev/dm-").await;
    run("dmsetup", &["remove", "--retry", "--noudevsync", "on-top"]);

    let over = run("losetup", &["-f", "--show", &device]);
    refused(&host, &format!("loop device over it: {over}")).await;
    run("losetup", &["-d", &over]);

    run("mkswap", &[&device]);
    run("swapon", &[&device]);
    refused(&host, &format!("swap: {device}")).await;
    run("swapoff", &[&device]);
    host.unstage().await.unwrap();
}

/// Swap in a file of the volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_file_is_a_use() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    let file = host.path("staging/swap");
    run(
        "sh",
        &["-c", &format!("dd if=/dev/zero of={file} bs=1M count=8 status=none; chmod 600 {file}")],
    );
    run("mkswap", &[&file]);
    run("swapon", &[&file]);
    refused(&host, &format!("swap: {file}")).await;
    run("swapoff", &[&file]);
    host.unstage().await.unwrap();
}
