// Package s3test is the bench for what talks to an S3 bucket: a real server on loopback and,
// between it and the client, a proxy that makes the network and the service as bad as they
// are on their worst days. Only tests import it.
//
//	server := s3test.Start(t)      // versitygw over a folder, with one bucket
//	proxy := server.Proxy(t)       // the client talks to proxy.Endpoint
//	rule := proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.Get}, Count: 2, Faults: []s3test.Fault{s3test.CutResponse(1000)}})
//	...                            // the first two GETs break off after 1000 bytes
//	rule.Hits()                    // 2, or the client never asked
//	proxy.Counts().Requests[s3test.Get]
//
// The proxy hands on the Host header that it gets, which the signature of a request covers,
// so the client signs for the proxy and the server agrees. It sees bodies as they are on the
// wire: a client that signs its body in pieces over plain HTTP (minio-go does unless told
// otherwise) wraps it in "aws-chunked", so offsets in request bodies include some 90 bytes
// of framing for each 64 KiB piece. Response bodies are plain.
//
// Everything that is random has a seed.
package s3test
