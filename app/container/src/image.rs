//! Images in the engine: loaded once under a name made of their digest, removed when nobody uses them.

use std::collections::HashMap;

use bollard::query_parameters::{
    ImportImageOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    RemoveImageOptionsBuilder,
};
use futures_util::StreamExt as _;

use crate::archive::Sha256;
use crate::error::{is_conflict, is_missing};
use crate::{Archive, Engine, Error};

/// Begins the names of our images.
const REPOSITORY: &str = "tabbify";

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image(Sha256);

impl Image {
    /// The image with this id.
    pub(crate) const fn new(id: Sha256) -> Self {
        Self(id)
    }

    /// Its name in the engine. The digest is of all its content, so that nobody can have another image
    /// under it.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{REPOSITORY}/{}:image", self.0.hex())
    }
}

/// Whether a name is one that we gave: others may have images in a repository of ours.
fn is_ours(name: &str) -> bool {
    let hex = name
        .strip_prefix(REPOSITORY)
        .and_then(|rest| rest.strip_prefix('/')?.strip_suffix(":image"));
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Engine {
    /// Has the engine load the image, unless it has it.
    ///
    /// # Errors
    /// [`Error::Load`] and those of a call.
    pub async fn load(&self, archive: &Archive) -> Result<Image, Error> {
        let image = Image::new(archive.id());
        if self.has(&image).await? {
            return Ok(image);
        }
        let stream = archive.docker_archive(image.reference());
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let mut said = self.docker.import_image_stream(options, stream, None);
        while let Some(said) = said.next().await {
            if let Err(error) = said {
                return Err(Error::Load(Box::new(error)));
            }
        }
        drop(said);
        if self.has(&image).await? {
            return Ok(image);
        }
        Err(Error::Answer("the image that it was to load"))
    }

    /// Whether the engine has it.
    async fn has(&self, image: &Image) -> Result<bool, Error> {
        match self.docker.inspect_image(&image.reference()).await {
            // Its id may be another one than ours: newer engines take the manifest's digest.
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(Error::call("looking for an image")(error)),
        }
    }

    /// Removes the images of ours that no container has, running or not. One that is being started may
    /// lose its image so, and loads it again. How many it removed.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn remove_unused_images(&self) -> Result<usize, Error> {
        let filters = HashMap::from([("reference", vec!["tabbify/*"])]);
        let options = ListImagesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let images = self.docker.list_images(Some(options)).await;
        let images = images.map_err(Error::call("listing images"))?;
        let mut removed = 0;
        for image in images {
            let options = ListContainersOptionsBuilder::default()
                .all(true)
                .filters(&HashMap::from([("ancestor", vec![image.id])]))
                .build();
            let users = self.docker.list_containers(Some(options)).await;
            if !users.map_err(Error::call("listing containers"))?.is_empty() {
                continue;
            }
            let ours = image.repo_tags.iter();
            for name in ours.filter(|name| is_ours(name)) {
                let options = RemoveImageOptionsBuilder::default().build();
                match self.docker.remove_image(name, Some(options), None).await {
                    Ok(_) => removed += 1,
                    // Somebody has come, or somebody else has removed it.
                    Err(error) if is_conflict(&error) || is_missing(&error) => {}
                    Err(error) => return Err(Error::call("removing an image")(error)),
                }
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_gave_are_ours() {
        let ours = format!("tabbify/{}:image", "0a".repeat(32));
        assert!(is_ours(&ours));
        for other in [
            "tabbify/supervisord:dev",
            "tabbify/0a:image",
            &ours.replace(":image", ":latest"),
            &format!("x{ours}"),
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
