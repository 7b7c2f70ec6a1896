//! The edge to the kernel. Nothing here decides; everything here is one call, its errors
//! told in full, and bounded in time by its caller through [`blocking`].

pub mod blockdev;
pub mod blocking;
pub mod cgroup;
pub mod clock;
pub mod dm;
pub mod fabrics;
pub mod ioctl;
pub mod iostat;
pub mod known;
pub mod mounts;
pub mod probe;
pub mod process;
pub mod processes;
pub mod programs;
pub mod refusal;
pub mod registry;
pub mod soundness;
pub mod sysfs;
pub mod udev;

pub use blockdev::DeviceNumber;
pub use blocking::blocking;
