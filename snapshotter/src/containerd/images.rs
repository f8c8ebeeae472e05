//! Image records: names for manifests, and roots of garbage collection.

use std::{collections::HashMap, time::SystemTime};

use capsule_proto::containerd::{
    services::images::v1::{
        CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
        UpdateImageRequest, images_client::ImagesClient,
    },
    types::Descriptor as WireDescriptor,
};

use super::{ContainerdError, Scope};

/// A named image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRecord {
    /// The reference.
    pub name: String,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Media type of what the name stands for.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: i64,
    /// When the record was made.
    pub created_at: Option<SystemTime>,
}

/// The largest list that is taken, in bytes: what containerd sends by default (`[grpc] max_send_message_size`) and any
/// operator may raise it to. tonic's own, 4 MiB, is some 10,000 images.
const LIST_MAX: usize = 256 << 20;

impl Scope {
    /// All image records of the namespace.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, ContainerdError> {
        let reply = ImagesClient::new(self.channel())
            .max_decoding_message_size(LIST_MAX)
            .list(self.request(ListImagesRequest::default()))
            .await
            .map_err(|e| self.failed("list its images", e))?;
        Ok(reply.into_inner().images.into_iter().filter_map(record).collect())
    }

    /// One image record; `None` if there is none of this name.
    pub async fn image(&self, name: &str) -> Result<Option<ImageRecord>, ContainerdError> {
        let request = self.request(GetImageRequest { name: name.to_owned() });
        match ImagesClient::new(self.channel()).get(request).await {
            Ok(reply) => Ok(reply.into_inner().image.and_then(record)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("look up the image {name}"), status)),
        }
    }

    /// Creates an image record. Fails with `AlreadyExists` if the name is taken, whatever it stands for.
    pub async fn create_image(&self, image: &ImageRecord) -> Result<(), ContainerdError> {
        let request = CreateImageRequest { image: Some(wire(image)), source_date_epoch: None };
        ImagesClient::new(self.channel())
            .create(self.request(request))
            .await
            .map_err(|e| self.failed(&format!("create the image {}", image.name), e))?;
        Ok(())
    }

    /// Changes an image record's target and labels. Fails with `NotFound` if there is none of this name.
    pub async fn update_image(&self, image: &ImageRecord) -> Result<(), ContainerdError> {
        let request =
            UpdateImageRequest { image: Some(wire(image)), update_mask: None, source_date_epoch: None };
        ImagesClient::new(self.channel())
            .update(self.request(request))
            .await
            .map_err(|e| self.failed(&format!("update the image {}", image.name), e))?;
        Ok(())
    }

    /// Deletes an image record; one that is not there is a success. What only it held goes with containerd's next
    /// garbage collection.
    pub async fn delete_image(&self, name: &str) -> Result<(), ContainerdError> {
        let request = DeleteImageRequest { name: name.to_owned(), ..Default::default() };
        match ImagesClient::new(self.channel()).delete(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&format!("delete the image {name}"), status)),
        }
    }
}

fn wire(image: &ImageRecord) -> Image {
    let target = WireDescriptor {
        media_type: image.media_type.clone(),
        digest: image.digest.clone(),
        size: image.size,
        ..Default::default()
    };
    Image {
        name: image.name.clone(),
        labels: image.labels.clone(),
        target: Some(target),
        ..Default::default()
    }
}

fn record(image: Image) -> Option<ImageRecord> {
    let target = image.target?;
    Some(ImageRecord {
        name: image.name,
        labels: image.labels,
        media_type: target.media_type,
        digest: target.digest,
        size: target.size,
        created_at: image.created_at.and_then(|t| t.try_into().ok()),
    })
}
