package fusefs

import "github.com/hanwen/go-fuse/v2/fs"

// What each node and handle implements; the compiler checks it. A method with a slightly
// wrong signature would otherwise be one that is never called.
var (
	_ fs.NodeOnAdder    = (*rootDir)(nil)
	_ fs.NodeGetattrer  = (*rootDir)(nil)
	_ fs.NodeGetxattrer = (*rootDir)(nil)
	_ fs.NodeStatfser   = (*rootDir)(nil)
	_ fs.NodeUnlinker   = (*rootDir)(nil)
	_ fs.NodeRmdirer    = (*rootDir)(nil)
	_ fs.NodeRenamer    = (*rootDir)(nil)

	_ fs.NodeGetattrer = (*textNode)(nil)
	_ fs.NodeOpener    = (*textNode)(nil)
	_ fs.FileReader    = (*textHandle)(nil)

	_ fs.NodeGetattrer = (*ckptDir)(nil)
	_ fs.NodeReaddirer = (*ckptDir)(nil)
	_ fs.NodeLookuper  = (*ckptDir)(nil)
	_ fs.NodeUnlinker  = (*ckptDir)(nil)
	_ fs.NodeRmdirer   = (*ckptDir)(nil)
	_ fs.NodeRenamer   = (*ckptDir)(nil)

	_ fs.NodeGetattrer = (*procDir)(nil)
	_ fs.NodeReaddirer = (*procDir)(nil)
	_ fs.NodeLookuper  = (*procDir)(nil)
	_ fs.NodeUnlinker  = (*procDir)(nil)
	_ fs.NodeRmdirer   = (*procDir)(nil)
	_ fs.NodeRenamer   = (*procDir)(nil)

	_ fs.NodeGetattrer   = (*imageNode)(nil)
	_ fs.NodeOpener      = (*imageNode)(nil)
	_ fs.NodeOnForgetter = (*imageNode)(nil)
	_ fs.FileReader      = (*imageHandle)(nil)
	_ fs.FileReleaser    = (*imageHandle)(nil)

	_ fs.NodeGetattrer = (*wordNode)(nil)
	_ fs.NodeSetattrer = (*wordNode)(nil)
	_ fs.NodeOpener    = (*wordNode)(nil)
	_ fs.FileReader    = (*wordHandle)(nil)
	_ fs.FileWriter    = (*wordHandle)(nil)

	_ fs.NodeGetattrer = (*imagesDir)(nil)
	_ fs.NodeReaddirer = (*imagesDir)(nil)
	_ fs.NodeLookuper  = (*imagesDir)(nil)
	_ fs.NodeRenamer   = (*imagesDir)(nil)
	_ fs.NodeUnlinker  = (*imagesDir)(nil)
	_ fs.NodeRmdirer   = (*imagesDir)(nil)

	_ fs.NodeGetattrer = (*savedDir)(nil)
	_ fs.NodeReaddirer = (*savedDir)(nil)
	_ fs.NodeLookuper  = (*savedDir)(nil)
	_ fs.NodeUnlinker  = (*savedDir)(nil)
	_ fs.NodeRmdirer   = (*savedDir)(nil)
	_ fs.NodeRenamer   = (*savedDir)(nil)

	_ fs.NodeGetattrer = (*savedFile)(nil)
	_ fs.NodeOpener    = (*savedFile)(nil)

	_ fs.NodeCopyFileRanger = (*savedFile)(nil)

	_ fs.FileReader   = (*savedHandle)(nil)
	_ fs.FileReleaser = (*savedHandle)(nil)

	_ fs.NodeOnAdder   = (*restoreDir)(nil)
	_ fs.NodeGetattrer = (*restoreDir)(nil)
	_ fs.NodeReaddirer = (*restoreDir)(nil)
	_ fs.NodeLookuper  = (*restoreDir)(nil)
	_ fs.NodeCreater   = (*restoreDir)(nil)
	_ fs.NodeUnlinker  = (*restoreDir)(nil)
	_ fs.NodeRmdirer   = (*restoreDir)(nil)
	_ fs.NodeRenamer   = (*restoreDir)(nil)

	_ fs.NodeGetattrer  = (*uploadNode)(nil)
	_ fs.NodeSetattrer  = (*uploadNode)(nil)
	_ fs.NodeSetxattrer = (*uploadNode)(nil)
	_ fs.NodeOpener     = (*uploadNode)(nil)
	_ fs.FileWriter     = (*uploadHandle)(nil)
	_ fs.FileReader     = (*uploadHandle)(nil)
	_ fs.FileFlusher    = (*uploadHandle)(nil)
	_ fs.FileFsyncer    = (*uploadHandle)(nil)
	_ fs.FileReleaser   = (*uploadHandle)(nil)
)
