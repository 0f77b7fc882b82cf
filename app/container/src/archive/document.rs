//! The JSON documents of both forms, as far as they say what to run: the OCI image specification (index,
//! manifest, config) and what `docker save` writes (`manifest.json`).

use std::collections::BTreeMap;
use std::fs::File;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::index::{Index, Span};
use super::{ArchiveError, Facts, LAYERS_MAX, Sha256};

/// LIMIT: one document, in bytes, as registries limit them.
const DOCUMENT_LEN_MAX: u64 = 4 * 1024 * 1024;
/// LIMIT: indexes within indexes.
const NESTING_MAX: usize = 3;
/// LIMIT: what all indexes name together; an image for every platform there is has some dozens.
const NAMED_MAX: usize = 256;

/// Config and layers of the one image that is for this machine.
pub(super) struct Chosen {
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Span>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct OciIndex {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Finds the image for `architecture`.
pub(super) fn choose(
    file: &File,
    index: &Index,
    architecture: &str,
) -> Result<Chosen, ArchiveError> {
    // Recent engines write both, and older ones only the first.
    if let Some(span) = index.get("manifest.json") {
        return saved(file, index, span);
    }
    let span = index.get("index.json").ok_or(ArchiveError::NotAnImage)?;
    let bytes = span.bytes(file, "index.json", DOCUMENT_LEN_MAX)?;
    let mut found = Found::default();
    let blobs = Blobs { file, index };
    blobs.images(&bytes, "index.json", architecture, 0, &mut found)?;
    let manifest = match (found.fitting.as_slice(), &found.other) {
        ([one], _) => one,
        ([], Some(other)) => {
            return Err(other_platform(other, architecture));
        }
        ([], None) => return Err(ArchiveError::damaged("index.json names no image")),
        (several, _) => return Err(ArchiveError::Several(several.len())),
    };
    let name = manifest.to_string();
    let manifest: Manifest = parse(&blobs.get(&name)?, &name)?;
    let layers = manifest.layers.iter().map(|layer| {
        let span = blobs.span(&layer.digest)?;
        Ok(span)
    });
    Ok(Chosen {
        config: blobs.get(&manifest.config.digest)?,
        layers: layers.collect::<Result<_, ArchiveError>>()?,
    })
}

fn saved(file: &File, index: &Index, span: Span) -> Result<Chosen, ArchiveError> {
    let bytes = span.bytes(file, "manifest.json", DOCUMENT_LEN_MAX)?;
    let saved: Vec<Saved> = parse(&bytes, "manifest.json")?;
    let [image] = saved.as_slice() else {
        return Err(ArchiveError::Several(saved.len()));
    };
    let missing = |name: &str| ArchiveError::damaged(format!("{name:?} is missing"));
    let config = index
        .get(&image.config)
        .ok_or_else(|| missing(&image.config))?;
    let layers = image.layers.iter().take(LAYERS_MAX + 1);
    let layers = layers.map(|name| index.get(name).ok_or_else(|| missing(name)));
    Ok(Chosen {
        config: config.bytes(file, &image.config, DOCUMENT_LEN_MAX)?,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

/// Images of an index: those for this machine, and what one of the others is for.
#[derive(Default)]
struct Found {
    fitting: Vec<Sha256>,
    other: Option<String>,
    named: usize,
}

struct Blobs<'a> {
    file: &'a File,
    index: &'a Index,
}

impl Blobs<'_> {
    fn span(&self, digest: &str) -> Result<Span, ArchiveError> {
        let digest = Sha256::parse(digest)?;
        let name = format!("blobs/sha256/{}", digest.hex());
        let missing = || ArchiveError::damaged(format!("{digest} is missing"));
        self.index.get(&name).ok_or_else(missing)
    }

    /// A document, which is what its digest says.
    fn get(&self, digest: &str) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self
            .span(digest)?
            .bytes(self.file, digest, DOCUMENT_LEN_MAX)?;
        if Sha256::of(&bytes) != Sha256::parse(digest)? {
            return Err(ArchiveError::damaged(format!(
                "the content of {digest} has another digest"
            )));
        }
        Ok(bytes)
    }

    fn images(
        &self,
        index: &[u8],
        name: &str,
        architecture: &str,
        depth: usize,
        found: &mut Found,
    ) -> Result<(), ArchiveError> {
        let index: OciIndex = parse(index, name)?;
        for image in index.manifests {
            found.named += 1;
            if found.named > NAMED_MAX {
                let what = format!("its indexes name more than {NAMED_MAX} images");
                return Err(ArchiveError::damaged(what));
            }
            let is_index =
                image.media_type.contains("index") || image.media_type.contains("manifest.list");
            if is_index {
                if depth >= NESTING_MAX {
                    return Err(ArchiveError::damaged("its indexes are nested too deep"));
                }
                let bytes = self.get(&image.digest)?;
                self.images(&bytes, &image.digest, architecture, depth + 1, found)?;
                continue;
            }
            match image.platform {
                // Builders put their attestations beside an image, for no platform.
                Some(platform) if platform.os == "unknown" => {}
                Some(platform)
                    if platform.os != "linux" || platform.architecture != architecture =>
                {
                    let named = || format!("{}/{}", platform.os, platform.architecture);
                    found.other.get_or_insert_with(named);
                }
                // Without a platform: its config says.
                _ => found.fitting.push(Sha256::parse(&image.digest)?),
            }
        }
        Ok(())
    }
}

/// What an image's config says, as far as it matters here.
#[derive(Debug)]
pub(super) struct Config {
    os: String,
    architecture: String,
    pub(super) diff_ids: Vec<Sha256>,
    pub(super) facts: Facts,
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
    config: Option<Run>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let document: ConfigDocument = parse(bytes, "its config")?;
        let run = document.config.unwrap_or_default();
        let words = [run.entrypoint, run.cmd].map(Option::unwrap_or_default);
        let exposed = run.exposed_ports.unwrap_or_default();
        let mut ports: Vec<u16> = exposed.keys().filter_map(|port| tcp(port)).collect();
        ports.sort_unstable();
        let ids = document.rootfs.diff_ids.unwrap_or_default();
        let ids = ids.iter().take(LAYERS_MAX + 1).map(|id| Sha256::parse(id));
        Ok(Self {
            os: document.os,
            architecture: document.architecture,
            diff_ids: ids.collect::<Result<_, _>>()?,
            facts: Facts {
                command: words.concat(),
                user: run.user.unwrap_or_default(),
                ports,
            },
        })
    }

    pub(super) fn check_platform(&self, architecture: &str) -> Result<(), ArchiveError> {
        if self.os == "linux" && self.architecture == architecture {
            return Ok(());
        }
        let found = format!("{}/{}", self.os, self.architecture);
        Err(other_platform(&found, architecture))
    }
}

/// `8080` or `8080/tcp`.
fn tcp(port: &str) -> Option<u16> {
    let number = port.strip_suffix("/tcp").unwrap_or(port);
    number.parse().ok().filter(|port| *port != 0)
}

fn other_platform(found: &str, architecture: &str) -> ArchiveError {
    ArchiveError::OtherPlatform {
        found: found.chars().take(80).collect(),
        here: format!("linux/{architecture}"),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, ArchiveError> {
    let wrong = |error| ArchiveError::damaged(format!("{name} cannot be read: {error}"));
    serde_json::from_slice(bytes).map_err(wrong)
}
