package s3test

import (
	"net/http"
	"net/url"
	"strings"
)

// Kind is what a request asks for.
type Kind string

// The kinds of requests. Put, Get and so on are about one whole object.
const (
	Put               Kind = "PUT"
	Get               Kind = "GET"
	RangeGet          Kind = "GET of a range"
	Head              Kind = "HEAD"
	Delete            Kind = "DELETE"
	DeleteMany        Kind = "DELETE of many"
	Copy              Kind = "COPY"
	List              Kind = "LIST"
	MultipartCreate   Kind = "multipart create"
	MultipartPart     Kind = "multipart part"
	MultipartComplete Kind = "multipart complete"
	MultipartAbort    Kind = "multipart abort"
	ListUploads       Kind = "LIST of uploads"
	ListParts         Kind = "LIST of parts"
	Other             Kind = "other" // buckets, tags and the like
)

// Request is what rules are matched against.
type Request struct {
	Kind   Kind
	Bucket string
	Key    string // for a listing the prefix that is asked for
	Query  url.Values
	Header http.Header
}

// describe says what a request asks for.
func describe(r *http.Request) *Request {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := &Request{Bucket: bucket, Key: key, Query: r.URL.Query(), Header: r.Header}
	if key == "" {
		q.Key = q.Query.Get("prefix")
		q.Kind = kindOfBucket(r.Method, q)
	} else {
		q.Kind = kindOfObject(r.Method, q)
	}
	return q
}

// kindOfBucket returns the kind of a request that names no object.
func kindOfBucket(method string, q *Request) Kind {
	switch {
	case q.Bucket == "":
		return Other
	case method == http.MethodGet && q.Query.Has("uploads"):
		return ListUploads
	case method == http.MethodPost && q.Query.Has("delete"):
		return DeleteMany
	// What the bucket is like is asked with one of these; a listing may have no parameter.
	case method == http.MethodGet && !hasAny(q.Query, "location", "versions", "versioning", "policy", "acl", "tagging",
		"lifecycle", "object-lock", "encryption", "cors", "notification", "replication"):
		return List
	}
	return Other
}

// kindOfObject returns the kind of a request that names an object.
func kindOfObject(method string, q *Request) Kind {
	switch {
	case hasAny(q.Query, "tagging", "acl", "retention", "legal-hold", "attributes"):
		return Other
	case q.Query.Has("uploadId"):
		return kindOfUpload(method)
	}
	switch method {
	case http.MethodPut:
		if q.Header.Get("X-Amz-Copy-Source") != "" {
			return Copy
		}
		return Put
	case http.MethodGet:
		if q.Header.Get("Range") != "" {
			return RangeGet
		}
		return Get
	case http.MethodHead:
		return Head
	case http.MethodDelete:
		return Delete
	case http.MethodPost:
		if q.Query.Has("uploads") {
			return MultipartCreate
		}
	}
	return Other
}

// kindOfUpload returns the kind of a request about an upload that was created.
func kindOfUpload(method string) Kind {
	switch method {
	case http.MethodPut:
		return MultipartPart
	case http.MethodPost:
		return MultipartComplete
	case http.MethodDelete:
		return MultipartAbort
	case http.MethodGet:
		return ListParts
	}
	return Other
}

// hasAny tells whether a query has one of the names.
func hasAny(query url.Values, names ...string) bool {
	for _, n := range names {
		if query.Has(n) {
			return true
		}
	}
	return false
}
