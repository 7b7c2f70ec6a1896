//! Block device ioctls that no safe wrapper exists for. All `unsafe` of the mounting side
//! is here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    use nix::libc::c_int;
    // linux/fs.h: BLKROSET is _IO(0x12, 93), and takes a pointer to an int.
    nix::ioctl_write_ptr_bad!(blkroset, nix::request_code_none!(0x12, 93), c_int);
}

/// Makes a block device refuse, or again allow, to be opened for writing. This concerns
/// the device, so everybody who opens it later.
///
/// # Errors
/// What the kernel says.
pub fn set_read_only(device: &File, read_only: bool) -> io::Result<()> {
    let value = nix::libc::c_int::from(read_only);
    // SAFETY: the descriptor is open for as long as `device` is borrowed, and the kernel
    // only reads one int through the pointer (block/ioctl.c, `blkdev_roset`).
    unsafe { raw::blkroset(device.as_raw_fd(), &raw const value) }?;
    Ok(())
}
