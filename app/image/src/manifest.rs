//! From an archive to the config and the layers of the image for one platform.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::archive::{Parts, document};
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::slice::Slice;

/// LIMIT: indexes in indexes.
const NESTING_MAX: usize = 3;

/// An operating system and a processor, as images name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
}

impl Platform {
    /// Linux on the processor that this program was built for.
    #[must_use]
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
        }
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }

    fn is(&self, os: &str, architecture: &str) -> bool {
        self.os == os && self.architecture == architecture
    }
}

/// One layer in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// As it lies there, compressed or not.
    pub(crate) content: Slice,
    /// Of that, where the archive tells it.
    pub(crate) digest: Option<Digest>,
    /// Of the tar in it.
    pub(crate) diff: Digest,
}

/// What an archive has for a platform.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of the config: the image's id.
    pub(crate) id: Digest,
    pub(crate) config: Config,
    /// The lowest first.
    pub(crate) layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<OfPlatform>,
}

#[derive(Deserialize)]
struct OfPlatform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Finds the image of `platform`.
pub(crate) fn find(parts: &Parts, platform: &Platform) -> Result<Found> {
    // Newer engines write both; the one with digests is read.
    if let Some(index) = parts.document("index.json")? {
        return from_layout(parts, &index, platform);
    }
    if let Some(saved) = parts.document("manifest.json")? {
        return from_saved(parts, &saved, platform);
    }
    Err(ImageError::NotAnImage {
        why: "it has neither index.json nor manifest.json".to_owned(),
    })
}

fn from_layout(parts: &Parts, index: &[u8], platform: &Platform) -> Result<Found> {
    let index: Index = json("index.json", index)?;
    let mut images = Vec::new();
    let mut others = Others::default();
    collect(
        parts,
        index,
        platform,
        NESTING_MAX,
        &mut images,
        &mut others,
    )?;
    // One image under two names is one image.
    images.sort_by_key(|found: &Found| found.id);
    images.dedup_by_key(|found| found.id);
    match images.len() {
        1 => Ok(images.remove(0)),
        0 if others.platforms.is_empty() => Err(ImageError::NotAnImage {
            why: "its index.json names no image".to_owned(),
        }),
        0 => Err(ImageError::Architecture {
            wanted: platform.shown(),
            found: others.shown(),
        }),
        count => Err(ImageError::Several { count }),
    }
}

/// LIMIT: what all indexes name together; an image for every platform there is has some dozens.
const NAMED_MAX: usize = 256;
/// LIMIT: platforms that are told, and the length of one.
const PLATFORMS_MAX: usize = 16;
const PLATFORM_LEN_MAX: usize = 80;

/// What an index names beside the image: platforms of others, and how many things in all.
#[derive(Default)]
struct Others {
    named: usize,
    platforms: BTreeSet<String>,
}

impl Others {
    /// Counts what is named once more.
    fn count(&mut self) -> Result<()> {
        self.named += 1;
        if self.named > NAMED_MAX {
            return Err(ImageError::Unsupported {
                what: format!("an index that names more than {NAMED_MAX} images"),
            });
        }
        Ok(())
    }

    fn push(&mut self, platform: &str) {
        if self.platforms.len() < PLATFORMS_MAX {
            let shown = platform.chars().take(PLATFORM_LEN_MAX).collect();
            self.platforms.insert(shown);
        }
    }

    fn shown(self) -> String {
        let platforms: Vec<String> = self.platforms.into_iter().collect();
        platforms.join(", ")
    }
}

/// Goes through an index; images of other platforms are only noted.
fn collect(
    parts: &Parts,
    index: Index,
    platform: &Platform,
    depth: usize,
    images: &mut Vec<Found>,
    others: &mut Others,
) -> Result<()> {
    for descriptor in index.manifests {
        others.count()?;
        if let Some(of) = &descriptor.platform {
            if of.os == "unknown" {
                continue; // an attestation, which says how an image was built
            }
            if !platform.is(&of.os, &of.architecture) {
                others.push(&format!("{}/{}", of.os, of.architecture));
                continue;
            }
        }
        let bytes = document("a manifest", blob(parts, &descriptor, "a manifest")?)?;
        verify(&bytes, &descriptor, "a manifest")?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("list") {
            let Some(depth) = depth.checked_sub(1) else {
                return Err(ImageError::Unsupported {
                    what: "an index of images that is nested so deeply".to_owned(),
                });
            };
            collect(
                parts,
                json("an index", &bytes)?,
                platform,
                depth,
                images,
                others,
            )?;
            continue;
        }
        let manifest: Manifest = json("the manifest", &bytes)?;
        match from_manifest(parts, manifest, platform) {
            Ok(found) => images.push(found),
            Err(ImageError::Architecture { found, .. }) => others.push(&found),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn from_manifest(parts: &Parts, manifest: Manifest, platform: &Platform) -> Result<Found> {
    let bytes = document("the config", blob(parts, &manifest.config, "the config")?)?;
    verify(&bytes, &manifest.config, "the config")?;
    let config = config(&bytes, platform)?;
    let mut layers = Vec::new();
    for (at, descriptor) in manifest.layers.iter().enumerate() {
        let name = format!("layer {}", at + 1);
        if descriptor.media_type.ends_with("+encrypted") {
            return Err(ImageError::Unsupported {
                what: format!("{name}, which is encrypted,"),
            });
        }
        layers.push((blob(parts, descriptor, &name)?, Some(descriptor.digest)));
    }
    whole(manifest.config.digest, config, layers)
}

fn from_saved(parts: &Parts, saved: &[u8], platform: &Platform) -> Result<Found> {
    let mut saved: Vec<Saved> = json("manifest.json", saved)?;
    let count = saved.len();
    let Some(one) = saved.pop().filter(|_| count == 1) else {
        return Err(ImageError::Several { count });
    };
    let missing = |name: &str| ImageError::damaged(name, "it is not in the archive");
    let bytes = parts.document(&one.config)?;
    let bytes = bytes.ok_or_else(|| missing("the config"))?;
    let config = config(&bytes, platform)?;
    let mut layers = Vec::new();
    for (at, name) in one.layers.iter().enumerate() {
        let part = parts.get(name);
        let part = part.ok_or_else(|| missing(&format!("layer {}", at + 1)))?;
        layers.push((part.clone(), None));
    }
    // The file is named by its digest, and that is the only place where it stands.
    let id = Digest::of(&bytes);
    if !one.config.contains(&id.hex()) {
        return Err(ImageError::damaged(
            "the config",
            "its digest is not its name",
        ));
    }
    whole(id, config, layers)
}

fn whole(id: Digest, config: Config, layers: Vec<(Slice, Option<Digest>)>) -> Result<Found> {
    let diffs = &config.layers;
    if diffs.len() != layers.len() {
        let why = format!(
            "it names {} layers, and there are {}",
            diffs.len(),
            layers.len()
        );
        return Err(ImageError::damaged("the config", why));
    }
    let layers = layers.into_iter().zip(diffs);
    let layers = layers.map(|((content, digest), diff)| Layer {
        content,
        digest,
        diff: *diff,
    });
    Ok(Found {
        id,
        layers: layers.collect(),
        config,
    })
}

fn config(bytes: &[u8], platform: &Platform) -> Result<Config> {
    let config = Config::parse(bytes).map_err(|why| ImageError::damaged("the config", why))?;
    if platform.is(&config.os, &config.architecture) {
        return Ok(config);
    }
    Err(ImageError::Architecture {
        wanted: platform.shown(),
        found: format!("{}/{}", config.os, config.architecture),
    })
}

fn blob(parts: &Parts, descriptor: &Descriptor, name: &str) -> Result<Slice> {
    let path = format!("blobs/sha256/{}", descriptor.digest.hex());
    let part = parts.get(&path);
    let part = part.ok_or_else(|| ImageError::damaged(name, "it is not in the archive"))?;
    if part.len() != descriptor.size {
        let why = format!("it has {} bytes instead of {}", part.len(), descriptor.size);
        return Err(ImageError::damaged(name, why));
    }
    Ok(part.clone())
}

fn verify(bytes: &[u8], descriptor: &Descriptor, name: &str) -> Result<()> {
    if Digest::of(bytes) == descriptor.digest {
        return Ok(());
    }
    Err(ImageError::damaged(name, "its digest is another"))
}

fn json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::damaged(name, error.to_string()))
}
