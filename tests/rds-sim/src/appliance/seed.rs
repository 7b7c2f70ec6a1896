//! Thousands of disks at once, for tests of scale.

use std::time::Instant;

use super::core::{Appliance, Entry};
use crate::ros::disk::Disk;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::number::Origin;

/// What each disk is made of; `{n}` counts from 0, `{uuid}` is one made of it.
#[derive(Debug, Clone)]
pub struct Seed {
    pub count: u32,
    pub slot: String,
    pub file_path: String,
    pub comment: String,
    pub bytes: u64,
}

impl Appliance {
    /// Makes sparse files and the disks over them, and saves once.
    pub fn seed(&self, seed: &Seed) -> Result<(), Refusal> {
        self.change(|| {
            let mut disks = Vec::new();
            for n in 0..seed.count {
                let uuid = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &n.to_be_bytes());
                let fill = |text: &str| {
                    text.replace("{n}", &n.to_string()).replace("{uuid}", &uuid.to_string())
                };
                let mut disk = Disk::new(ItemId(0), self.portal_port);
                disk.set("slot", &fill(&seed.slot), Origin::Text)?;
                disk.set("file-path", &fill(&seed.file_path), Origin::Text)?;
                disk.set("comment", &fill(&seed.comment), Origin::Text)?;
                disk.set("file-size", &seed.bytes.to_string(), Origin::Text)?;
                disk.mount_filesystem = false;
                let (_, host) = self.place_for(&disk.file_path)?;
                let made = std::fs::File::create(host).and_then(|f| f.set_len(seed.bytes));
                made.map_err(|e| Refusal::Guess(format!("failure: {e}")))?;
                disks.push(disk);
            }
            let mut inner = self.inner();
            for mut disk in disks {
                disk.id = ItemId(inner.next_id);
                inner.next_id += 1;
                let entry = Entry { visible_at: Some(Instant::now()), toggles: 0, disk };
                inner.disks.insert(entry.disk.id, entry);
            }
            self.save(&inner)
        })
    }
}
