package bucket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"gopkg.in/ini.v1"
)

// bucketScheme begins the location of a store in a bucket.
const bucketScheme = "s3://"

// Is reports whether a location names a bucket, s3://BUCKET/PREFIX, and not a folder.
func Is(location string) bool { return strings.HasPrefix(location, bucketScheme) }

// parseBucket takes bucket and prefix out of a location; the prefix is empty or ends in "/".
func parseBucket(location string) (name, prefix string, err error) {
	name, prefix, _ = strings.Cut(strings.TrimPrefix(location, bucketScheme), "/")
	prefix = strings.Trim(prefix, "/")
	if name == "" || strings.ContainsAny(location, "?# ") {
		return "", "", fmt.Errorf("%q names no bucket: it must be s3://BUCKET or s3://BUCKET/PREFIX: %w", location, fs.ErrInvalid)
	}
	if prefix != "" {
		prefix += "/"
	}
	return name, prefix, nil
}

// s3Config is where the bucket's server is.
type s3Config struct {
	endpoint string // URL, "" for Amazon's
	region   string
}

// defaultEndpoint serves who names no other.
const defaultEndpoint = "https://s3.amazonaws.com"

// readS3Config reads the variables and the file that all tools for S3 read:
// AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, and endpoint_url
// and region of the profile AWS_PROFILE in AWS_CONFIG_FILE or ~/.aws/config.
func readS3Config(getenv func(string) string) (c s3Config, err error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	c.endpoint = first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
	c.region = first("AWS_REGION", "AWS_DEFAULT_REGION")
	if c.endpoint != "" && c.region != "" {
		return c, nil
	}
	path := getenv("AWS_CONFIG_FILE")
	if path == "" {
		path = filepath.Join(getenv("HOME"), ".aws", "config")
	}
	f, err := ini.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	section := "default"
	if p := getenv("AWS_PROFILE"); p != "" && p != section {
		section = "profile " + p
	}
	if c.endpoint == "" {
		c.endpoint = f.Section(section).Key("endpoint_url").String()
	}
	if c.region == "" {
		c.region = f.Section(section).Key("region").String()
	}
	return c, nil
}

// s3Credentials looks into the usual variables and files, and asks the machine's own service
// last, unless AWS_EC2_METADATA_DISABLED says that there is none.
func s3Credentials(client *http.Client) *credentials.Credentials {
	chain := []credentials.Provider{&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{}}
	if !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		chain = append(chain, &credentials.IAM{Client: client})
	}
	return credentials.NewChainCredentials(chain)
}

// errNoCredentials says that there is nothing to sign requests with.
var errNoCredentials = fmt.Errorf("no credentials for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials: %w", fs.ErrPermission)

// newCore makes the client of the server that environment and files name.
func newCore() (*minio.Core, error) {
	conf, err := readS3Config(os.Getenv)
	if err != nil {
		return nil, err
	}
	switch {
	case conf.endpoint == "":
		conf.endpoint = defaultEndpoint
	case conf.region == "": // other servers take any, and asking them costs a request
		conf.region = "us-east-1"
	}
	u, err := url.Parse(conf.endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("the endpoint %q must be http:// or https:// with a host and no path (AWS_ENDPOINT_URL): %w", conf.endpoint, fs.ErrInvalid)
	}
	secure := u.Scheme == "https"
	tr, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	tr.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	tr.ResponseHeaderTimeout = 0 // every attempt has a deadline of its own
	client := &http.Client{Timeout: 5 * time.Second}
	creds := s3Credentials(client)
	if v, err := creds.GetWithContext(&credentials.CredContext{Client: client, Endpoint: conf.endpoint}); err != nil || v.AccessKeyID == "" {
		return nil, errors.Join(errNoCredentials, err)
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: creds, Secure: secure, Region: conf.region,
		Transport: tr, MaxRetries: 1, // we know better what may be tried again
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", conf.endpoint, err)
	}
	core.SetAppInfo("ckptfs", "1")
	return core, nil
}
