//! Its volumes.

use capsule_proto::capsule::v1::{self, volumes_client::VolumesClient};
use tonic::{Code, Status, transport::Channel};

use super::{MAX_ANSWER, Node};
use crate::{
    agent::volumes::{Listed, There},
    api::{VolumeMode, VolumeOwner, VolumeWanted},
};

impl Node {
    fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Those that last.
    ///
    /// # Errors
    /// capsuled is away.
    pub async fn list_volumes(&self) -> Result<There, Status> {
        match self.volumes().list_volumes(v1::ListVolumesRequest {}).await {
            Ok(all) => {
                let lasting = all.into_inner().volumes.into_iter().filter(|one| !one.ephemeral);
                Ok(There::Known(lasting.map(Listed::from).collect()))
            }
            Err(status) if super::is_away(&status) => Err(status),
            Err(status) if status.code() == Code::Unimplemented => {
                Ok(There::Unknown("this node's capsuled has no volumes: it needs a newer one".to_owned()))
            }
            Err(status) => Ok(There::Unknown(status.message().to_owned())),
        }
    }

    /// Makes what a volume is written to, in this version of its capsule; there already as it is asked for, it is what is wanted.
    ///
    /// # Errors
    /// capsuled's; what was asked for is none.
    pub async fn create_volume(&self, wanted: &VolumeWanted, version: &str) -> Result<Listed, Status> {
        let spec = Some(spec(wanted, version)?);
        let made = self.volumes().create_volume(v1::CreateVolumeRequest { spec }).await?.into_inner().volume;
        made.map(Listed::from).ok_or_else(|| Status::internal("capsuled does not say what it made"))
    }

    /// Puts another version into a volume. Beside it, how many mounts in containers have the version before still.
    ///
    /// # Errors
    /// capsuled's.
    pub async fn replace_volume(&self, id: &str, version: &str) -> Result<(Listed, u32), Status> {
        let request = v1::ReplaceVolumeRequest { id: id.to_owned(), version: version.to_owned() };
        let replaced = self.volumes().replace_volume(request).await?.into_inner();
        let has = replaced.volume.map(|has| (Listed::from(has), replaced.left));
        has.ok_or_else(|| Status::internal("capsuled does not say what it replaced"))
    }

    /// Removes a volume and what was written to it. That there is none is no error.
    ///
    /// # Errors
    /// capsuled's; it is mounted.
    pub async fn remove_volume(&self, id: &str) -> Result<(), Status> {
        match self.volumes().remove_volume(v1::RemoveVolumeRequest { id: id.to_owned() }).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            result => result.map(drop),
        }
    }
}

fn spec(wanted: &VolumeWanted, version: &str) -> Result<v1::VolumeSpec, Status> {
    let wrong = |what: &str| Status::invalid_argument(format!("{what} of the volume {} is none", wanted.id));
    let permissions = wanted.permissions.as_deref().map(|text| u32::from_str_radix(text, 8));
    let permissions = permissions.transpose().map_err(|_| wrong("permissions"))?;
    let number = |id: i64| u32::try_from(id).map_err(|_| wrong("owner"));
    let owner = |owner: &VolumeOwner| {
        Ok::<_, Status>(v1::VolumeOwner { uid: number(owner.user)?, gid: number(owner.group)? })
    };
    Ok(v1::VolumeSpec {
        id: wanted.id.clone(),
        capsule: wanted.capsule.clone().unwrap_or_default(),
        version: version.to_owned(),
        writable: wanted.mode == VolumeMode::Rw,
        size: u64::try_from(wanted.size.unwrap_or_default()).map_err(|_| wrong("size"))?,
        owner: wanted.owner.as_ref().map(owner).transpose()?,
        permissions,
    })
}
