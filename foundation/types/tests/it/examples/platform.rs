//! `platform`, `platform.auth`, `platform.mesh.peers`, `platform.supervisors`.

use tabbify_types::event::v1::{
    AllowRule, AppAddressClaimed, Capability, DeviceAdded, DeviceRemoved, IssuerKeyRotated,
    LeaseGranted, LeaseReleased, NetworkAllocated, PasswordChanged, PeerJoined, PeerLeft,
    PlatformInitialized, PlatformVersionRaised, PolicyChanged, RoleChanged, SessionsEnded,
    SignInsRefused, SubjectErased, SupervisorDrainRequested, SupervisorDrained, SupervisorJoined,
    SupervisorLost, TenantCreated, TokenIssued, TokenRevoked, TokenUsed, UserInvited,
    UserRegistered,
};
use tabbify_types::{
    Base64Url, ByteSize, DeviceUla, Epoch, Event, HostUla, InstanceId, SlotId, Tenant,
    VerifyingKeyBytes,
};

use super::{address, app, host, mesh_key, sealed, the, time};

pub(super) fn all() -> Vec<Event> {
    let mut all = vec![
        PlatformInitialized {
            root_key: VerifyingKeyBytes([9; 32]),
        }
        .into(),
        PlatformVersionRaised {
            version: "0.2.0".to_owned(),
        }
        .into(),
    ];
    all.extend(auth());
    all.extend(mesh());
    all.extend(supervisors());
    all
}

fn auth() -> Vec<Event> {
    let jti = "0191e7c4-0000-7000-8000-000000000001";
    let mut all = people();
    all.extend([
        TokenIssued {
            jti: jti.to_owned(),
            kind: "join".to_owned(),
            subject: "host:box2".to_owned(),
            expires: time(),
            tenant: Some(Tenant::main()),
            scopes: vec!["apps:read".to_owned()],
            tags: vec!["gpu".to_owned()],
            by: Some("user:anna".to_owned()),
        }
        .into(),
        TokenUsed {
            jti: jti.to_owned(),
            key: mesh_key(),
        }
        .into(),
        TokenRevoked {
            jti: jti.to_owned(),
            expires: time(),
        }
        .into(),
        SessionsEnded {
            subject: "user:anna".to_owned(),
            upto: time(),
        }
        .into(),
        SignInsRefused {
            how: "password".to_owned(),
            subject: Some("user:anna".to_owned()),
            count: 40,
            limited: 35,
            from: time(),
            upto: time(),
        }
        .into(),
        IssuerKeyRotated {
            kid: VerifyingKeyBytes([8; 32]).id(),
            public: VerifyingKeyBytes([8; 32]),
            signature: Base64Url(vec![5; 64]).to_string(),
        }
        .into(),
        SubjectErased {
            subject: "user:anna".to_owned(),
        }
        .into(),
    ]);
    all
}

fn people() -> Vec<Event> {
    vec![
        TenantCreated {
            tenant: Tenant::main(),
        }
        .into(),
        UserInvited {
            invite: the("0191e7c4-0000-7000-8000-000000000002"),
            user: "user:anna".to_owned(),
            tenant: Tenant::main(),
            email: sealed("user:anna"),
            expires: time(),
        }
        .into(),
        UserRegistered {
            user: "user:anna".to_owned(),
            tenant: Tenant::main(),
            key: Some(VerifyingKeyBytes([6; 32])),
        }
        .into(),
        RoleChanged {
            user: "user:anna".to_owned(),
            tenant: Tenant::main(),
            role: Some("developer".to_owned()),
        }
        .into(),
        PasswordChanged {
            user: "user:anna".to_owned(),
            verifier: sealed("user:anna"),
        }
        .into(),
    ]
}

fn mesh() -> Vec<Event> {
    vec![
        NetworkAllocated {
            network: "main".to_owned(),
            number: 1,
        }
        .into(),
        PeerJoined {
            host: host(),
            network: "main".to_owned(),
            index: 2,
            address: HostUla::new(1, 2),
            key: mesh_key(),
            tags: vec!["gpu".to_owned()],
        }
        .into(),
        PeerLeft { host: host() }.into(),
        AppAddressClaimed {
            address: address(),
            app: app(),
        }
        .into(),
        LeaseGranted {
            app: app(),
            tenant: Tenant::main(),
            slot: SlotId::FIRST,
            epoch: Epoch(3),
            instance: InstanceId(7),
            key: mesh_key(),
            host: host(),
        }
        .into(),
        LeaseReleased {
            app: app(),
            instance: InstanceId(7),
        }
        .into(),
        PolicyChanged {
            tenant: Tenant::main(),
            allow: vec![AllowRule {
                from: "tenant:studio".to_owned(),
                to: format!("app:{}", app()),
                ports: vec![5432],
            }],
        }
        .into(),
        DeviceAdded {
            user: "user:anna".to_owned(),
            tenant: Tenant::main(),
            name: the("laptop"),
            key: mesh_key(),
            address: DeviceUla::new(3),
            by: "user:owner".to_owned(),
        }
        .into(),
        DeviceRemoved {
            address: DeviceUla::new(3),
            by: "user:owner".to_owned(),
        }
        .into(),
    ]
}

fn supervisors() -> Vec<Event> {
    vec![
        SupervisorJoined {
            host: host(),
            capabilities: vec![Capability {
                runtime: "firecracker".to_owned(),
                works: false,
                detail: "no /dev/kvm".to_owned(),
            }],
            memory: Some(ByteSize::mib(16 * 1024)),
        }
        .into(),
        SupervisorLost { host: host() }.into(),
        SupervisorDrainRequested {
            host: host(),
            by: "user:owner".to_owned(),
        }
        .into(),
        SupervisorDrained { host: host() }.into(),
    ]
}
