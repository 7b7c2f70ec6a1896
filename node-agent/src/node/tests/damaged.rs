//! A file system that the kernel does not mount any more.

use std::os::unix::fs::FileExt;

use super::*;

/// Mending is for people, with the command that they are told.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_not_repaired_but_the_way_to_do_it_is_told() {
    let host = Host::new();
    let file = host.sessions.file.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-b", "4096", file]);
    // The group descriptors, behind the first block; there are copies of them.
    let image = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    image.write_all_at(&[0xff; 256], 4096).unwrap();
    let read = || {
        let mut start = vec![0; 1 << 20];
        image.read_exact_at(&mut start, 0).unwrap();
        start
    };
    let before = read();
    let refused = host.stage(fs("ext4")).await.unwrap_err();
    let device = host.sessions.device().path;
    let advice = format!("`e2fsck -fn {}`", device.display());
    assert_eq!(refused.code(), Code::Internal);
    assert!(refused.message().contains(&advice), "{refused}");
    assert!(before == read(), "something was written");
    assert_eq!(host.layers("staging"), 0);

    // 1: errors were corrected.
    let mended = Command::new("e2fsck").args(["-fy"]).arg(&device).output().unwrap();
    assert_eq!(mended.status.code(), Some(1), "{mended:?}");
    host.stage(fs("ext4")).await.unwrap();
    assert_eq!(host.layers("staging"), 1);
}
