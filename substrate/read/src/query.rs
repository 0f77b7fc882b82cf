//! Questions: each is one read transaction, a page, and the tenant that may see it.

mod apps;
mod audit;
mod deploys;
mod peers;
mod search;
mod select;
mod tokens;

use std::time::Duration;

use tabbify_api::read::{
    Answer, AppDetail, AppRow, ApprovalRow, ApprovalStatus, AuditFilter, AuditRow, BuildRow,
    DeployRow, LeaseRow, Listing, PeerRow, ReadModel, ReadScope, ReadStatus, TokenRow, VersionRow,
    Window,
};
use tabbify_types::{AppId, Position};

use crate::node::ReadNode;

impl ReadModel for ReadNode {
    fn status(&self) -> ReadStatus {
        self.status_now()
    }

    fn wait_for(&self, position: Position, timeout: Duration) -> Answer<'_, ()> {
        self.wait(position, timeout)
    }

    fn apps(
        &self,
        scope: ReadScope,
        name: Option<String>,
        window: Window,
    ) -> Answer<'_, Listing<AppRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| apps::list(tx, &scope, name.as_deref(), &window)),
        )
    }

    fn app(&self, scope: ReadScope, app: AppId) -> Answer<'_, Option<AppDetail>> {
        Box::pin(self.pool().ask(move |tx| apps::one(tx, &scope, app)))
    }

    fn versions(
        &self,
        scope: ReadScope,
        app: AppId,
        window: Window,
    ) -> Answer<'_, Listing<VersionRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| apps::versions(tx, &scope, app, &window)),
        )
    }

    fn deploys(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<DeployRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| deploys::list(tx, &scope, app, &window)),
        )
    }

    fn builds(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<BuildRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| deploys::builds(tx, &scope, app, &window)),
        )
    }

    fn approvals(
        &self,
        scope: ReadScope,
        status: Option<ApprovalStatus>,
        window: Window,
    ) -> Answer<'_, Listing<ApprovalRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| tokens::approvals(tx, &scope, status, &window)),
        )
    }

    fn peers(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<PeerRow>> {
        Box::pin(self.pool().ask(move |tx| peers::list(tx, &scope, &window)))
    }

    fn leases(
        &self,
        scope: ReadScope,
        app: Option<AppId>,
        window: Window,
    ) -> Answer<'_, Listing<LeaseRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| peers::leases(tx, &scope, app, &window)),
        )
    }

    fn tokens(&self, scope: ReadScope, window: Window) -> Answer<'_, Listing<TokenRow>> {
        Box::pin(self.pool().ask(move |tx| tokens::list(tx, &scope, &window)))
    }

    fn audit(
        &self,
        scope: ReadScope,
        filter: AuditFilter,
        window: Window,
    ) -> Answer<'_, Listing<AuditRow>> {
        Box::pin(
            self.pool()
                .ask(move |tx| audit::list(tx, &scope, &filter, &window)),
        )
    }
}
